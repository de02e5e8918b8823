"""Streams and durables, made by `hatchery bus migrate` from the declarations; running it again changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hatchery_common.bus.errors import BusRefused
from hatchery_common.bus.jetstream import JetStream
from hatchery_common.bus.registry import (
    CMD,
    DLQ,
    EVT,
    LIVE_PREFIX,
    ROUTE_PREFIX,
    ROUTES,
    THREADS,
    durable_name,
    stream_of,
)
from hatchery_common.errors import SetupError

if TYPE_CHECKING:
    from hatchery_common.contracts.base import Message
    from hatchery_common.service import Service

_SECOND = 1_000_000_000
_DAY = 24 * 3600 * _SECOND
_CANNOT_UPDATE = "delete the durable or stream by hand if that is meant, then migrate again"


@dataclass(frozen=True)
class Durable:
    """One durable of a service."""

    stream: str
    name: str
    filters: tuple[str, ...]


@dataclass
class Report:
    """What a migration found and did, each as `stream` or `stream/durable`."""

    created: list[str] = field(default_factory=list[str])
    updated: list[str] = field(default_factory=list[str])
    unchanged: list[str] = field(default_factory=list[str])
    orphans: list[str] = field(default_factory=list[str])  # durables that no declaration names; they are left alone


def durables_of(service: Service) -> list[Durable]:
    """The durables that follow from a service's declaration."""
    found: list[Durable] = []
    for stream in (CMD, EVT):
        for batch in (False, True):
            filters = {
                message.subject_filter()
                for message in service.consumes
                if (message in service.batched) is batch and stream_of(message.subject_filter()) == stream
            }
            if filters:
                found.append(Durable(stream, durable_name(service.name, batch=batch), tuple(sorted(filters))))
    return found


def streams(replicas: int = 1) -> dict[str, dict[str, Any]]:
    """The configuration of every stream, by name."""
    common: dict[str, Any] = {
        "retention": "limits",
        "storage": "file",
        "num_replicas": replicas,
        "duplicate_window": 600 * _SECOND,
        "allow_direct": True,
        "allow_atomic": True,
        "discard": "new",
    }
    live = {"src": "thr.>", "dest": f"{LIVE_PREFIX}>"}
    own: dict[str, dict[str, Any]] = {
        CMD: {"subjects": ["cmd.>"], "max_age": 30 * _DAY, "discard": "old", "max_msg_size": 256 * 1024},
        EVT: {"subjects": ["evt.>"], "deny_delete": True, "max_msg_size": 256 * 1024, "compression": "s2"},
        THREADS: {"subjects": ["thr.>"], "republish": live, "compression": "s2"},
        DLQ: {"subjects": ["dlq.>"], "max_age": 180 * _DAY, "discard": "old"},
        ROUTES: {
            "subjects": [f"{ROUTE_PREFIX}>"],
            "max_msgs_per_subject": 1,
            "allow_rollup_hdrs": True,
            "deny_delete": True,
            "allow_atomic": False,
        },
    }
    return {name: {"name": name, **common, **config} for name, config in own.items()}


def consumer_config(durable: Durable, ack_wait_s: float = 5.0) -> dict[str, Any]:
    """The server's configuration of a durable; the wrapper counts deliveries, so the server has no limit."""
    return {
        "durable_name": durable.name,
        "ack_policy": "explicit",
        "ack_wait": int(ack_wait_s * _SECOND),
        "deliver_policy": "all",
        "replay_policy": "instant",
        "max_deliver": -1,
        "max_ack_pending": 8192,
        "max_waiting": 512,
        "filter_subjects": list(durable.filters),
    }


async def migrate(jetstream: JetStream, services: Iterable[Service], *, replicas: int = 1) -> Report:
    """Create or update all streams and durables; needs the rights of bus-admin."""
    report = Report()
    for name, config in streams(replicas).items():
        await _stream(jetstream, name, config, report)
    wanted = {(durable.stream, durable.name): durable for service in services for durable in durables_of(service)}
    for durable in wanted.values():
        await _durable(jetstream, durable, report)
    for stream in (CMD, EVT):
        listed = await jetstream.call(f"CONSUMER.NAMES.{stream}")
        names = listed.get("consumers") or []
        report.orphans += [
            f"{stream}/{name}" for name in names if (stream, name) not in wanted and "scratch" not in name
        ]
    return report


async def _stream(jetstream: JetStream, name: str, config: Mapping[str, Any], report: Report) -> None:
    found = await jetstream.find(f"STREAM.INFO.{name}")
    if found is None:
        await jetstream.call(f"STREAM.CREATE.{name}", config, timeout_s=10)
        report.created.append(name)
    elif _differs(found["config"], config):
        await _update(jetstream, f"STREAM.UPDATE.{name}", {**found["config"], **config}, name)
        report.updated.append(name)
    else:
        report.unchanged.append(name)


async def _durable(jetstream: JetStream, durable: Durable, report: Report) -> None:
    label = f"{durable.stream}/{durable.name}"
    config = consumer_config(durable)
    if len(durable.filters) == 1:  # the server stores a single filter under its older name
        config["filter_subject"] = config.pop("filter_subjects")[0]
    found = await jetstream.find(f"CONSUMER.INFO.{durable.stream}.{durable.name}")
    method = f"CONSUMER.DURABLE.CREATE.{durable.stream}.{durable.name}"
    body: dict[str, Any] = {"stream_name": durable.stream, "config": config}
    if found is None:
        await jetstream.call(method, {**body, "action": "create"}, timeout_s=10)
        report.created.append(label)
    elif _differs(found["config"], config) or ("filter_subject" in config) != ("filter_subject" in found["config"]):
        await _update(jetstream, method, {**body, "action": "update"}, label)
        report.updated.append(label)
    else:
        report.unchanged.append(label)


async def _update(jetstream: JetStream, method: str, body: Mapping[str, Any], label: str) -> None:
    try:
        await jetstream.call(method, body, timeout_s=10)
    except BusRefused as error:
        raise SetupError(
            f"{label} cannot be changed to its declaration: {error.message}", hint=_CANNOT_UPDATE
        ) from error


def _differs(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return any(_plain(found.get(key)) != _plain(value) for key, value in wanted.items())


def _plain(value: Any) -> Any:
    """Absent and false or empty are the same to the server."""
    if isinstance(value, list):
        return sorted(value)
    if isinstance(value, Mapping):
        return {key: inner for key, inner in value.items() if inner}
    return value or None


async def missing(jetstream: JetStream, services: Iterable[Service]) -> list[str]:
    """Durables that are declared and not there."""
    wanted = [durable for service in services for durable in durables_of(service)]
    return [
        f"{durable.stream}/{durable.name}"
        for durable in wanted
        if await jetstream.find(f"CONSUMER.INFO.{durable.stream}.{durable.name}") is None
    ]


def all_messages(services: Iterable[Service]) -> set[type[Message]]:
    """Every message type that any declaration names."""
    return {message for service in services for message in (*service.consumes, *service.produces)}
