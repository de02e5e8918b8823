"""Checks of the bus as each service sees it: every right it needs, one that it must not have, its lag; dead letters."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from hatchery_common.bus.authorization import ADMIN
from hatchery_common.bus.jetstream import JetStream
from hatchery_common.bus.probe import probe_rights
from hatchery_common.bus.replay import Operator
from hatchery_common.bus.topology import Durable, durables_of, streams
from hatchery_common.errors import HatcheryError, Refused
from hatchery_common.service import Service

from hatchery_cli.deadletters import read_letters
from hatchery_cli.doctor.findings import Finding, error, ok, warning
from hatchery_cli.preparing import administrator
from hatchery_cli.rendering import nkey_seed

_RENDER = "run `hatchery bus config` and give the block to the NATS server (embedded: restart with down and up)"
_MIGRATE = "run `hatchery bus migrate`"
_UNREACHABLE = "is NATS running? see `hatchery status`"
_LAG = 1000


async def check_bus(url: str, root: bytes, services: Sequence[Service]) -> list[Finding]:
    """Everything about the bus; one finding per service and one per thing that lags."""
    seed = nkey_seed(root, ADMIN)
    try:
        async with administrator(url, seed) as jetstream:
            streams_there = await _check_streams(jetstream)
            found = [streams_there, *await _check_lag(jetstream, services)]
        if streams_there.level == "ok":
            found.append(await check_dead_letters(url, seed))
    except HatcheryError as problem:
        return [error("bus_unreachable", problem.message, problem.hint or _UNREACHABLE)]
    return found + await asyncio.gather(*(check_rights(url, root, service) for service in services))


async def _check_streams(jetstream: JetStream) -> Finding:
    missing = [name for name in streams() if await jetstream.stream_state(name) is None]
    if missing:
        return error("streams_missing", f"missing on NATS: {', '.join(missing)}", _MIGRATE)
    return ok("streams", f"{len(streams())} streams and buckets are there")


async def _check_lag(jetstream: JetStream, services: Sequence[Service]) -> list[Finding]:
    found: list[Finding] = []
    worst = 0
    for durable in (durable for service in services for durable in durables_of(service)):
        lag = await _lag(jetstream, durable)
        label = f"{durable.name} on {durable.stream}"
        worst = max(worst, lag or 0)
        if lag is None:
            found.append(error("durable_missing", f"durable {label} is missing", _MIGRATE))
        elif lag > _LAG:
            remedy = "see its service's problems in `hatchery status`"
            found.append(warning("lag", f"{label} is {lag} messages behind", remedy))
    return [*found, ok("lag", f"at most {worst} messages behind")]


async def _lag(jetstream: JetStream, durable: Durable) -> int | None:
    """How many messages a durable is behind; None when it does not exist."""
    info = await jetstream.find(f"CONSUMER.INFO.{durable.stream}.{durable.name}")
    return None if info is None else int(info["num_pending"]) + int(info["num_ack_pending"])


async def check_dead_letters(url: str, seed: str | None) -> Finding:
    """Only those that wait: one that was sent again stays in DLQ as history."""
    async with Operator.open(url, seed=seed) as bus:
        letters = await read_letters(bus)
    waiting = sum(letter.is_waiting for letter in letters)
    if waiting:
        text = f"{waiting} dead letters wait"
        return warning("dead_letters", text, "hatchery stream dlq ls --waiting, fix the cause, then redrive or dismiss")
    return ok("dead_letters", f"no dead letter waits ({len(letters)} were dealt with)")


async def check_rights(url: str, root: bytes, service: Service) -> Finding:
    """Sign in as the service; try each right and the forbidden thing."""
    try:
        found = await probe_rights(url, service, nkey_seed(root, service.name))
    except Refused as problem:
        return error("bus_refused", f"{service.name} cannot sign in to the bus: {problem.message}", _RENDER)
    except HatcheryError as problem:
        return error("bus_unreachable", f"{service.name}: {problem.message}", _UNREACHABLE)
    lacking = [f"{one.detail} {one.subject}" for one in found if not one.ok and not one.forbidden]
    if lacking:
        return error("bus_right_missing", f"{service.name}: {', '.join(lacking)}", _RENDER)
    if not all(one.ok for one in found):
        return error("bus_right_excess", f"{service.name} may do more on the bus than it declares", _RENDER)
    return ok("bus_rights", f"{service.name}: {len(found) - 1} rights on the bus, and not more")
