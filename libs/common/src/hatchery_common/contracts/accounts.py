"""Wishes about accounts, published by the api when a person is first seen."""

from __future__ import annotations

from hatchery_common.contracts.base import Command


class OpenAccount(Command):
    """Open the tenant's account (billing grants the month's credits by it); repeating it changes nothing."""

    aggregate = "account"
    verb = "open"
    key = "tenant"
