"""What a worker has to do for a run, decided from the folded log alone, and how a turn can end."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from hatchery_agent.domain.folding import RunState


class Step(StrEnum):
    """The next thing to do for a run."""

    SETTLE = "settle"  # the log holds its end: only rows and events are missing
    ATTEMPT = "attempt"  # send it, or take up what an earlier attempt sent: the key makes both the same call
    GIVE_UP = "give_up"  # too many attempts died


def next_step(run: RunState, *, max_attempts: int) -> Step:
    """Decide from the log alone, so that a lost row never causes a second turn."""
    if run.ended:
        return Step.SETTLE
    if run.waiting:  # its attempt goes on: nothing was sent in it yet
        return Step.ATTEMPT
    return Step.GIVE_UP if run.attempt >= max_attempts else Step.ATTEMPT


@dataclass(frozen=True)
class Usage:
    """Token counts of a turn, as far as OpenClaw reported them."""

    input_tokens: int | None = None
    output_tokens: int | None = None


@dataclass(frozen=True)
class Finished:
    """The turn ended with an answer."""

    text: str
    usage: Usage = Usage()
    first_text_ms: int | None = None


@dataclass(frozen=True)
class Failed:
    """The turn ended, or was given up, without an answer; `message` is shown to the user."""

    code: str
    message: str
    retryable: bool = True


@dataclass(frozen=True)
class Lost:
    """The stream broke before the turn's end, which may still come: the next attempt takes it up by its key."""


@dataclass(frozen=True)
class Waits:
    """The instance is on its way, and nothing was sent: look again after so many seconds, or when its event comes."""

    look_s: float


Ending = Finished | Failed


def interrupted() -> Failed:
    """The end of a turn that OpenClaw accepted and will not finish any more."""
    return Failed(
        "interrupted", "The gateway was restarted during this answer, so the answer is incomplete. Please retry.", True
    )


def not_running(state: str, message: str | None = None) -> Failed:
    """The end of a turn for an instance that does not run."""
    detail = f": {message}" if message else ""
    return Failed("instance_not_running", f"The instance is {state}{detail}. Start it, then retry.", True)
