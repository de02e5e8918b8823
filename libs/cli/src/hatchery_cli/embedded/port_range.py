"""Which ports a stack may begin at; apart from the rest, as the help of `up` needs it and imports nothing heavy."""

from __future__ import annotations

DEFAULT_PORT = 8800
SPAN = 300  # ports of one stack
LAST_PORT = 65535 - SPAN + 1
