"""Routes: the key-value bucket from which the proxy knows where each gateway answers."""

from __future__ import annotations

from collections.abc import Callable

import structlog
from pydantic import ValidationError

from hatchery_common.bus.connection import Connection
from hatchery_common.bus.direct import DirectReader
from hatchery_common.bus.envelope import MESSAGE_ID, Encoded
from hatchery_common.bus.listening import Raw
from hatchery_common.bus.registry import ROUTE_PREFIX, ROUTES
from hatchery_common.contracts.routes import Route, route_subject
from hatchery_common.errors import InvalidInput
from hatchery_common.ids import is_token, new_id

log = structlog.get_logger("hatchery.bus")


def encode_route(route: Route, *, id: str | None = None) -> Encoded:  # noqa: A002 - the envelope's own word
    """The put of a route, ready for an outbox row."""
    if not is_token(route.instance_id):
        raise InvalidInput(f"{route.instance_id!r} cannot be a key of the routes")
    headers = {MESSAGE_ID: id or new_id("rte")}
    return Encoded(route_subject(route.instance_id), headers, route.model_dump_json().encode())


class Routes:
    """Reads the bucket as a whole and hears each put."""

    def __init__(self, connection: Connection, reader: DirectReader) -> None:
        self._connection = connection
        self._reader = reader

    async def snapshot(self) -> dict[str, Route]:
        """Every route by its instance; raises BusUnavailable."""
        found: dict[str, Route] = {}
        async for stored in self._reader.read(ROUTES, f"{ROUTE_PREFIX}>"):
            route = _read(stored.subject, stored.data)
            if route is not None:
                found[route.instance_id] = route
        return found

    async def follow(self, callback: Callable[[Route], None]) -> None:
        """Call this for each put from now on; a put during a disconnection is not heard (take a snapshot then)."""

        async def receive(raw: Raw) -> None:
            route = _read(raw.subject, raw.data)
            if route is not None:
                callback(route)

        await self._connection.subscribe(f"{ROUTE_PREFIX}>", receive)


def _read(subject: str, data: bytes) -> Route | None:
    if not data:
        return None  # a delete or purge marker
    try:
        route = Route.model_validate_json(data)
    except ValidationError as error:
        log.warning("bus.route_unreadable", subject=subject, faults=error.error_count())
        return None
    if subject != route_subject(route.instance_id):
        log.error("bus.route_disagrees", subject=subject, instance_id=route.instance_id)
        return None
    return route
