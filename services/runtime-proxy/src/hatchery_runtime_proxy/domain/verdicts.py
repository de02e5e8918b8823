"""What a model provider's status means: for the machine that asked, for the operator, and for the bill."""

from __future__ import annotations

from enum import StrEnum

_OPERATORS = frozenset({401, 407})
_REFUSALS = frozenset({402, 403})
_TIMEOUTS = frozenset({504, 524})


class Verdict(StrEnum):
    """What becomes of a provider's answer."""

    PASSES = "passes"  # the machine gets it unchanged: an answer, or a refusal of its own request
    OPERATOR = "operator"  # our key: nothing that a machine could mend
    REFUSED = "refused"  # this request is not allowed or not paid for there: the model asked for, or what is in it, may decide
    TIMEOUT = "timeout"
    FAILED = "failed"


def judge(status: int) -> Verdict:
    """A machine that saw a 401, 402 or 403 would take its own key for bad and stop using it for a while."""
    if status in _OPERATORS:
        return Verdict.OPERATOR
    if status in _REFUSALS:
        return Verdict.REFUSED
    if status in _TIMEOUTS:
        return Verdict.TIMEOUT
    return Verdict.PASSES if 200 <= status < 300 or 400 <= status < 500 else Verdict.FAILED


def costs_nothing(status: int) -> bool:
    """Whether this status says that no tokens were spent; behind a gateway's timeout the model may still be at work."""
    return status >= 300 and status not in _TIMEOUTS
