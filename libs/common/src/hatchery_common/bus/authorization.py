"""The server's authorization block: one nkey user per service with exactly the rights of its declaration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from hatchery_common.bus.registry import DEAD_PREFIX, LIVE_PREFIX, ROUTE_PREFIX, ROUTES, THREADS, stream_of
from hatchery_common.bus.topology import durables_of
from hatchery_common.errors import SetupError

if TYPE_CHECKING:
    from hatchery_common.service import Service

ADMIN: Final = "bus-admin"
"""Migrations and operators' tools; no service has its key."""


@dataclass(frozen=True)
class Rights:
    """The subjects that a user may publish to and listen on."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


def rights_of(service: Service) -> Rights:
    """What follows from a declaration, and nothing else."""
    publish = {message.subject_filter() for message in service.produces}
    publish |= {f"$JS.API.STREAM.INFO.{stream_of(subject)}" for subject in publish}
    publish |= {rpc.subject for rpc in service.calls}
    publish |= {f"{DEAD_PREFIX}{message.subject_filter()}" for message in service.consumes}
    publish.add("$JS.API.INFO")
    subscribe = {f"_INBOX_{service.name}.>"} | {rpc.subject for rpc in service.serves}
    for durable in durables_of(service):
        place = f"{durable.stream}.{durable.name}"
        publish |= {f"$JS.API.CONSUMER.MSG.NEXT.{place}", f"$JS.API.CONSUMER.INFO.{place}", f"$JS.ACK.{place}.>"}
    if service.writes_routes:
        publish |= {f"{ROUTE_PREFIX}>", f"$JS.API.STREAM.INFO.{ROUTES}"}
    if service.writes_routes or service.reads_routes:
        publish.add(f"$JS.API.DIRECT.GET.{ROUTES}")
        subscribe.add(f"{ROUTE_PREFIX}>")
    if service.writes_threads:
        publish.add("thr.>")
    if service.writes_threads or service.reads_threads:
        publish |= {f"$JS.API.DIRECT.GET.{THREADS}", f"$JS.API.STREAM.INFO.{THREADS}"}
        subscribe.add(f"{LIVE_PREFIX}>")
    return Rights(tuple(sorted(publish)), tuple(sorted(subscribe)))


def forbidden_probe(service: Service) -> str:
    """A subject that this service must not publish to; asking there is harmless even where it is allowed by mistake."""
    return f"$JS.API.STREAM.INFO.HATCHERY_FORBIDDEN_{service.name.upper().replace('-', '_')}"


def render(services: Iterable[Service], public_keys: Mapping[str, str]) -> str:
    """The block for the server's configuration; `public_keys` holds each service's public nkey and that of bus-admin."""
    users = [_user(ADMIN, _key(public_keys, ADMIN), Rights((">",), (">",)))]
    users += [_user(service.name, _key(public_keys, service.name), rights_of(service)) for service in services]
    return "authorization {\n  users = [\n" + "".join(users) + "  ]\n}\n"


def _key(public_keys: Mapping[str, str], name: str) -> str:
    key = public_keys.get(name)
    if key is None or not key.startswith("U"):
        raise SetupError(f"no public nkey for {name}", hint="run `hatchery secrets render`")
    return key


def _user(name: str, key: str, rights: Rights) -> str:
    answers = '        allow_responses: { max: 1, expires: "2m" }\n' if name != ADMIN else ""
    return (
        f"    {{ # {name}\n"
        f"      nkey: {key}\n"
        "      permissions: {\n"
        f"        publish: {{ allow: [{_quoted(rights.publish)}] }}\n"
        f"        subscribe: {{ allow: [{_quoted(rights.subscribe)}] }}\n"
        f"{answers}"
        "      }\n"
        "    }\n"
    )


def _quoted(subjects: Iterable[str]) -> str:
    return ", ".join(f'"{subject}"' for subject in subjects)
