"""Verify on large ledgers."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from hatchery_billing.audit import verify
from hatchery_billing.audit.checks import CHECKS
from hatchery_common.database import Database


async def test_a_check_may_take_longer_than_a_statement_of_the_service(database: Database):
    limits: list[Any] = []

    def note(dialect: Any, record: Any, arguments: Any, parameters: dict[str, Any]) -> None:
        limits.append(parameters.get("command_timeout"))

    sa.event.listen(sa.Engine, "do_connect", note)
    try:
        assert (await verify(database.url)).ok
    finally:
        sa.event.remove(sa.Engine, "do_connect", note)
    assert limits == [None]


async def test_each_check_says_that_it_begins(database: Database):
    said: list[str] = []
    await verify(database.url, progress=said.append)
    assert said[0] == f"check 1 of {len(CHECKS) + 1}: {CHECKS[0].code}"
    assert len(said) == len(CHECKS) + 1
