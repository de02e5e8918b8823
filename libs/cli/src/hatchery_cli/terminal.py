"""Where operators' tables are printed."""

from __future__ import annotations

from rich.console import Console

_PIPED = 200  # columns when nobody looks, so that tables in pipes and files are not cut


def console() -> Console:
    """A console as wide as the terminal, and wide when it is none."""
    made = Console(highlight=False, soft_wrap=True)
    if not made.is_terminal:
        made = Console(highlight=False, soft_wrap=True, width=_PIPED)
    return made
