"""The gateway's environment: a short list of ours, plus the user's own variables."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, cast

from hatchery_controller.domain.template import MODEL_KEY_VARIABLE

if TYPE_CHECKING:
    from hatchery_controller.domain.bundle import Bundle
    from hatchery_controller.domain.layout import Layout

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_RESERVED = ("OPENCLAW_", "HATCHERY_", "NODE_", "LD_", "DYLD_")
_RESERVED_NAMES = frozenset({"PATH", "HOME", "TMPDIR", "LANG"})


class EnvironmentRefused(ValueError):
    """A variable that a machine must not run with; the text names it and never shows its value."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def gateway_environment(bundle: Bundle, layout: Layout) -> dict[str, str]:
    """The whole environment of the gateway; NODE_COMPILE_CACHE stays unset, it would make the started pid a launcher."""
    ours = {
        "PATH": f"{PurePosixPath(bundle.gateway.node).parent}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(layout.home),
        "TMPDIR": str(layout.temporary),
        "LANG": "C.UTF-8",
        "OPENCLAW_STATE_DIR": str(layout.state),
        "OPENCLAW_CONFIG_PATH": str(layout.config),
        "OPENCLAW_CONFIG_READONLY": "1",
        "OPENCLAW_NO_RESPAWN": "1",
        "OPENCLAW_DISABLE_BONJOUR": "1",
        "OPENCLAW_NO_AUTO_UPDATE": "1",
        "OPENCLAW_OFFLINE": "1",
        MODEL_KEY_VARIABLE: bundle.model.token,
    }
    return {**_checked(bundle.environment), **ours}


def _checked(variables: dict[str, str]) -> dict[str, str]:
    for name, value in variables.items():
        if not _NAME.fullmatch(name) or "\0" in value:
            shown = re.sub(r"[^\x20-\x7e]", "?", name)[:128]
            raise EnvironmentRefused("environment_invalid", f"the variable {shown!r} has a malformed name or value")
        if name in _RESERVED_NAMES or name.startswith(_RESERVED):
            raise EnvironmentRefused("environment_reserved", f"the variable {name} belongs to the operator")
    return variables


def open_sealed(sealed: object, key: bytes | None = None) -> dict[str, str]:
    """The user's sealed variables. Without an opening key this fails closed: a gateway never starts with half its secrets."""
    if sealed is None:
        return {}
    names = sorted(cast("dict[str, Any]", sealed)) if isinstance(sealed, dict) else []
    shown = ", ".join(name for name in names if _NAME.fullmatch(name)) or "of this machine"
    why = "this controller was given no opening key" if key is None else "this controller cannot open them"
    raise EnvironmentRefused("sealed_environment_unreadable", f"cannot open the sealed environment ({shown}): {why}")
