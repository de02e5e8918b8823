"""Checks of the bus as each service sees it: every right it needs, one that it must not have, and its lag."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

from hatchery_common.bus.authorization import ADMIN, Rights, forbidden_probe, rights_of
from hatchery_common.bus.connection import Connection, NoResponders, Raw
from hatchery_common.bus.errors import BusUnavailable
from hatchery_common.bus.jetstream import JetStream
from hatchery_common.bus.topology import durables_of, streams
from hatchery_common.errors import HatcheryError
from hatchery_common.service import Service

from hatchery_cli.doctor.findings import Finding, error, ok, warning
from hatchery_cli.preparing import administrator
from hatchery_cli.rendering import nkey_seed

_RENDER = "run `hatchery bus config` and give the block to the NATS server (embedded: restart with down and up)"
_MIGRATE = "run `hatchery bus migrate`"
_WAIT_S = 1.5
_LAG = 1000
# A publish under this condition is answered with an error and never stored: it shows the right and changes nothing.
_NEVER_STORED = {"Nats-Expected-Last-Msg-Id": "hatchery-doctor", "Nats-Expected-Stream": "HATCHERY_DOCTOR"}


async def check_bus(url: str, root: bytes, services: Sequence[Service]) -> list[Finding]:
    """Everything about the bus; one finding per service and one per thing that lags."""
    try:
        async with administrator(url, nkey_seed(root, ADMIN)) as jetstream:
            found = [await _check_streams(jetstream), *await _check_lag(jetstream, services)]
    except HatcheryError as problem:
        return [error("bus_unreachable", problem.message, problem.hint or "is NATS running? see `hatchery status`")]
    return found + await asyncio.gather(*(check_rights(url, root, service) for service in services))


async def _check_streams(jetstream: JetStream) -> Finding:
    missing = [name for name in streams() if await jetstream.stream_state(name) is None]
    if missing:
        return error("streams_missing", f"missing on NATS: {', '.join(missing)}", _MIGRATE)
    return ok("streams", f"{len(streams())} streams and buckets are there")


async def _check_lag(jetstream: JetStream, services: Sequence[Service]) -> list[Finding]:
    found: list[Finding] = []
    worst = 0
    for service in services:
        for durable in durables_of(service):
            info = await jetstream.find(f"CONSUMER.INFO.{durable.stream}.{durable.name}")
            label = f"{durable.name} on {durable.stream}"
            if info is None:
                found.append(error("durable_missing", f"durable {label} is missing", _MIGRATE))
                continue
            lag = int(info["num_pending"]) + int(info["num_ack_pending"])
            worst = max(worst, lag)
            if lag > _LAG:
                found.append(
                    warning(
                        "lag", f"{label} is {lag} messages behind", "see its service's problems in `hatchery status`"
                    )
                )
    dead = await jetstream.stream_state("DLQ")
    if dead is not None and dead.messages:
        found.append(warning("dead_letters", f"{dead.messages} dead letters", "hatchery stream dlq ls, then redrive"))
    return [*found, ok("lag", f"at most {worst} messages behind")]


async def check_rights(url: str, root: bytes, service: Service) -> Finding:
    """Sign in as the service; try each right and the forbidden thing."""
    connection = Connection(url, service.name, nkey_seed(root, service.name))
    try:
        await connection.open(5)
    except HatcheryError as problem:
        return error("bus_refused", f"{service.name} cannot sign in to the bus: {problem.message}", _RENDER)
    try:
        rights = rights_of(service)
        lacking = await _lacking(connection, rights)
        if lacking:
            return error("bus_right_missing", f"{service.name} may not: {', '.join(lacking)}", _RENDER)
        if not await _is_denied(connection, forbidden_probe(service)):
            return error("bus_right_excess", f"{service.name} may do more on the bus than it declares", _RENDER)
    finally:
        await connection.close()
    count = len(rights.publish) + len(rights.subscribe)
    return ok("bus_rights", f"{service.name}: {count} rights on the bus, and not more")


async def _lacking(connection: Connection, rights: Rights) -> list[str]:
    probed = [subject for subject in rights.publish if _can_be_tried(subject)]
    answers = await asyncio.gather(*(_answers(connection, _example(subject)) for subject in probed))
    lacking = [f"publish {subject}" for subject, answered in zip(probed, answers, strict=True) if not answered]
    return lacking + [
        f"listen on {subject}" for subject in rights.subscribe if not await _may_listen(connection, subject)
    ]


def _can_be_tried(subject: str) -> bool:
    """Pulling or acknowledging would take messages away from the service; reading a log needs a body of its own,
    and a route, even a refused one, is heard by those who listen for routes."""
    return not subject.startswith(("$JS.API.CONSUMER.MSG.NEXT.", "$JS.ACK.", "$JS.API.DIRECT.GET.", "$KV."))


def _example(subject: str) -> str:
    """A subject that the pattern allows."""
    words = ["hatchery-doctor" if word in ("*", ">") else word for word in subject.split(".")]
    return ".".join(words)


async def _answers(connection: Connection, subject: str) -> bool:
    """Whether anybody answers, be it with an error; a request that is not permitted never gets anywhere."""
    headers = None if subject.startswith("$JS.API.") else dict(_NEVER_STORED)
    payload = b"" if subject.startswith("$JS.API.") else json.dumps({"doctor": True}).encode()
    try:
        await connection.request(subject, payload, headers=headers, timeout_s=_WAIT_S)
    except NoResponders:
        return True
    except BusUnavailable:
        return False
    return True


async def _is_denied(connection: Connection, subject: str) -> bool:
    await connection.publish(subject)
    await connection.flush()
    return subject.lower() in (connection.problem() or "").lower()


async def _may_listen(connection: Connection, subject: str) -> bool:
    async def ignore(raw: Raw) -> None:
        del raw

    listening = await connection.subscribe(subject, ignore)
    await connection.flush()
    problem = connection.problem() or ""
    await connection.unsubscribe(listening)
    return f'"{subject}"'.lower() not in problem.lower()
