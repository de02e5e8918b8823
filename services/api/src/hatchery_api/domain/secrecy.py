"""No credential leaves through data that we only pass on."""

from __future__ import annotations

import re

_SECRET_NAME = re.compile(
    r"(token|secret|password|api_?key|private_?key|authorization|cookie|pepper|_encrypted|_iv|_alg|seed)$",
    re.IGNORECASE,
)


def without_secrets(value: object) -> object:
    """The value without the text fields whose names say that they are secret (numbers such as `totalTokens` stay)."""
    if isinstance(value, dict):
        return {
            name: without_secrets(item)
            for name, item in value.items()
            if not (isinstance(item, str) and _SECRET_NAME.search(str(name)))
        }
    if isinstance(value, list):
        return [without_secrets(item) for item in value]
    return value
