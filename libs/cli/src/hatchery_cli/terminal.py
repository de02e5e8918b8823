"""Where operators' tables are printed, and what `up` tells."""

from __future__ import annotations

from typing import Any

from rich.console import Console

_PIPED = 200  # columns when nobody looks, so that tables in pipes and files are not cut


def console() -> Console:
    """A console as wide as the terminal, and wide when it is none."""
    made = Console(highlight=False, soft_wrap=True)
    if not made.is_terminal:
        made = Console(highlight=False, soft_wrap=True, width=_PIPED)
    return made


class Patient(Console):
    """A console whose caller goes on when nobody can be told: its terminal was closed, or the disk of its log is full."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print if that is possible."""
        try:
            super().print(*objects, **options)
        except OSError:
            self._buffer.clear()

    def on_broken_pipe(self) -> None:
        """The reader went away; rich would end this process."""
        self.quiet = True
