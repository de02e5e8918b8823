"""What every route needs, given once by main."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request
from hatchery_common.clock import Clock
from structlog.typing import FilteringBoundLogger

from hatchery_api.ports import Calls, Changes, Runtime, Store, ThreadLogs, TokenVerifier
from hatchery_api.settings import ApiSettings


@dataclass(frozen=True, slots=True)
class Door:
    """The website's door with everything behind it."""

    settings: ApiSettings
    store: Store
    calls: Calls
    logs: ThreadLogs
    runtime: Runtime
    tokens: TokenVerifier
    changes: Changes
    clock: Clock
    log: FilteringBoundLogger


def get_door(request: Request) -> Door:
    """The door of this application."""
    return cast("Door", request.app.state.door)


DoorOf = Annotated[Door, Depends(get_door)]
