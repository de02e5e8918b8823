"""Whether anything on this machine keeps one user's gateway from another's."""

from __future__ import annotations

import os
from collections.abc import Mapping

REMEDY = (
    "run the stack as root, HATCHERY_PROVISIONER_SEPARATE_USERS unset, so that each gateway has a user of its own; "
    "or, if all your users may reach each other's data, say so: hatchery up --trust-all-users"
)
_SEPARATE = "HATCHERY_PROVISIONER_SEPARATE_USERS"
_TRUST = "HATCHERY_PROVISIONER_TRUST_ALL_USERS"
_NO = {"0", "off", "f", "false", "n", "no"}
_YES = {"1", "on", "t", "true", "y", "yes"}


def missing_isolation(settings: Mapping[str, str], *, as_root: bool | None = None) -> str | None:
    """What isolation the gateways of a stack with these settings do without, in a sentence; None when they have it."""
    as_root = os.geteuid() == 0 if as_root is None else as_root
    if as_root and settings.get(_SEPARATE, "").lower() not in _NO:
        return None
    why = (
        f"{_SEPARATE} is false, so that all gateways run as root"
        if as_root
        else "all gateways run as the user of this stack"
    )
    trusted = settings.get(_TRUST, "").lower() in _YES
    who = "all users are trusted with each other's data" if trusted else "only one user is served"
    return f"nothing isolates one instance from another: {why}; {who}"
