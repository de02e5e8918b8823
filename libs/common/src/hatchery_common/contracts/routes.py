"""Routes, written by the provisioner: where the gateway of each instance answers."""

from __future__ import annotations

from enum import StrEnum

from hatchery_common.contracts.base import Model


class RouteState(StrEnum):
    """What the proxy may do with a route."""

    STARTING = "starting"  # admits the readiness probe and the machine's own model calls alone
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    GONE = "gone"  # tombstone


class Route(Model):
    """Where an instance's gateway answers: the value of `$KV.routes.<instance_id>`; a lower route_version is ignored.

    The uids are for machines that are processes of this host, where any user may bind a port that is free for a moment: what
    does not run as that user is told no secret. None where the address alone belongs to the machine.
    """

    instance_id: str
    tenant: str
    name: str = "default"
    state: RouteState
    route_version: int
    generation: int = 0
    machine_id: str | None = None
    endpoint: str | None = None  # http://host:port of the gateway
    controller: str | None = None  # http://host:port of the controller
    endpoint_uid: int | None = None  # the user that the gateway runs as
    controller_uid: int | None = None  # the user that the controller runs as
    changed_at_ms: int


ROUTES_BUCKET = "routes"


def route_subject(instance_id: str) -> str:
    """The subject of a put into the routes bucket."""
    return f"$KV.{ROUTES_BUCKET}.{instance_id}"
