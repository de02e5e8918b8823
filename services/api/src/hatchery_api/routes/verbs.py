"""The verbs on an instance that is there: one table for both families that offer them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter

from hatchery_api.domain.operations import Kind


@dataclass(frozen=True, slots=True)
class Verb:
    """What one verb wishes, and the seeds' word for it in the platform family."""

    kind: Kind
    platform: str
    summary: str


VERBS = (
    Verb(Kind.START, "start", "Bring the instance to ready"),
    Verb(Kind.STOP, "stop", "Stop the instance; its data stays"),
    Verb(Kind.RESTART, "restart", "Replace the machine by a new generation on the same data"),
    Verb(Kind.DELETE, "destroy", "Remove the instance and its data; legal in every state"),
)


def accepted(answer: Any) -> dict[int | str, dict[str, Any]]:
    """The other answer of a route that wishes something, beside 202."""
    return {200: {"description": "The instance is as wished, or the plan", "model": answer}}


def add_verb(
    router: APIRouter, verb: Verb, act: Callable[..., Any], *, path: str, name: str, answer: Any, method: str = "POST"
) -> None:
    """Add the verb's route; `name` is the prefix of its error strings, `<family> <operation>`."""
    family, _, operation = name.partition(" ")
    router.add_api_route(
        path,
        act,
        methods=[method],
        name=name,
        operation_id=operation if family == "openclaw" else f"{family}{operation.capitalize()}",
        summary=verb.summary,
        status_code=202,
        responses=accepted(answer),
    )
