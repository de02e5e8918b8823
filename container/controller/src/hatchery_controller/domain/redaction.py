"""Takes everything secret out of a line of text: what we know to be secret, and whatever looks like a key."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

MASK = "[redacted]"
_SHORTEST_KNOWN = 6  # shorter values are words; masking them would make a log unreadable and hide nothing

# Every repetition is bounded or starts at a word's edge: the tenant chooses these lines, and a slow pattern would be his lever.
_LOOKS_SECRET = re.compile(
    r"""
    -----BEGIN[ ][A-Z ]{0,40}PRIVATE[ ]KEY-----.*     # the rest of the line that starts a key
    | x-hatchery-[0-9a-f]{8,}                         # a machine's secret header name
    | \beyJ[\w-]{8,4096}\.[\w-]{8,4096}(?:\.[\w-]*)?  # a JWT
    | \b(?:sk|pk|rk|whsec|hf|glpat|github_pat|gh[opsu]|xox[a-z])[-_][\w-]{12,}
    | \b(?:AKIA|ASIA|AIza|ya29\.|npm_)[\w-]{12,}
    | \b\d{8,10}:[\w-]{30,}                           # a Telegram bot token
    | (?<![\w/.-])(?=[\w-]*\d)(?=[\w-]*[a-z])(?=[\w-]*[A-Z])[\w-]{32,}(?![\w/.-])
    | (?<![\w/])[0-9a-fA-F]{32,}(?![\w/])
    """,
    re.VERBOSE,
)
_BEARER = re.compile(r"(?i)\b(bearer|basic)(\s{1,3})[\w.~+/=-]{6,}")
_URL_USER = re.compile(r"(://)[^\s/@:]{1,256}:[^\s/@]{1,256}@")
_NAMED = re.compile(
    r"(?i)((?:token|secret|passw(?:or)?d|api[_-]?key|private[_-]?key|authorization|cookie)[\w-]{0,40}"
    r"\\?[\"']?\s{0,3}[:=]\s{0,3}\\?[\"']?)(?!\[redacted\]|\d+\b)([^\s\"',;&}\\]{6,})"
)
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


class Redactor:
    """Masks the given secrets, in any letter case, and everything that looks like one."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known: set[str] = set()
        for secret in secrets:
            known.update(_forms(secret))
        # Longest first: a secret that contains another must not leave its tail behind.
        parts = [re.escape(secret) for secret in sorted(known, key=len, reverse=True)]
        self._known = re.compile("|".join(parts), re.IGNORECASE) if parts else None

    def __call__(self, text: str) -> str:
        text = _CONTROL.sub("", _ESCAPES.sub("", text))
        if self._known is not None:
            text = self._known.sub(MASK, text)
        text = _BEARER.sub(rf"\1\2{MASK}", text)
        text = _URL_USER.sub(rf"\1{MASK}@", text)
        text = _LOOKS_SECRET.sub(MASK, text)
        return _NAMED.sub(rf"\1{MASK}", text)


def _forms(secret: str) -> set[str]:
    """The ways one secret may appear in a log: whole, escaped as JSON, and line by line."""
    forms = {secret, json.dumps(secret)[1:-1], *secret.splitlines()}
    return {form.strip() for form in forms if len(form.strip()) >= _SHORTEST_KNOWN}
