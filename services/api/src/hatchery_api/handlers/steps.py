"""Names the step in which an error arose, for the one-line error strings of the website's contract."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from hatchery_common.errors import HatcheryError


@contextmanager
def step(name: str | None) -> Generator[None]:
    """Errors leaving the block carry `step`, unless an inner block has named one."""
    try:
        yield
    except HatcheryError as error:
        if name is not None:
            error.context.setdefault("step", name)
        raise
