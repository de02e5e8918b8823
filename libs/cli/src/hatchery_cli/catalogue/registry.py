"""What there is to list: contracts found in their modules, joined with the declarations of services."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import hatchery_common.contracts
from hatchery_common.contracts.base import Command, Message, Rpc
from hatchery_common.service import Service


@dataclass(frozen=True)
class MessageEntry:
    """One message type, who sends it, who reads it."""

    message: type[Message]
    producers: tuple[str, ...]
    consumers: tuple[str, ...]

    @property
    def kind(self) -> Literal["command", "event"]:
        """A wish or a fact."""
        return "command" if issubclass(self.message, Command) else "event"

    @property
    def about(self) -> str:
        """The first sentence of its docstring."""
        return first_sentence(self.message)

    @property
    def place(self) -> str:
        """Where it is defined: module and class."""
        return f"{self.message.__module__.rpartition('.')[2]}.{self.message.__name__}"


@dataclass(frozen=True)
class RpcEntry:
    """One rpc, who answers it, who asks."""

    rpc: Rpc[Any, Any]
    servers: tuple[str, ...]
    callers: tuple[str, ...]

    @property
    def about(self) -> str:
        """The first sentence of the request's docstring."""
        return first_sentence(self.rpc.request)


@dataclass(frozen=True)
class Shared:
    """Something that is written and read outside of messages: thread logs, routes."""

    name: str
    subject: str
    writers: tuple[str, ...]
    readers: tuple[str, ...]


@dataclass(frozen=True)
class Catalogue:
    """Everything that travels on the bus."""

    messages: tuple[MessageEntry, ...]
    rpcs: tuple[RpcEntry, ...]
    shared: tuple[Shared, ...]

    def problems(self) -> list[str]:
        """What breaks the rules: one consumer per command, one producer per event, one server per rpc."""
        return [*self._message_problems(), *self._rpc_problems()]

    def _message_problems(self) -> Iterable[str]:
        for entry in self.messages:
            name = entry.message.message_type()
            if entry.kind == "command" and len(entry.consumers) != 1:
                yield f"command {name} needs exactly one consumer, it has {_listed(entry.consumers)}"
            if entry.kind == "event" and len(entry.producers) != 1:
                yield f"event {name} needs exactly one producer, it has {_listed(entry.producers)}"

    def _rpc_problems(self) -> Iterable[str]:
        for entry in self.rpcs:
            if len(entry.servers) != 1:
                yield f"rpc {entry.rpc.subject} needs exactly one server, it has {_listed(entry.servers)}"


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "none"


def build(services: Mapping[str, Service]) -> Catalogue:
    """The catalogue of these services over all contracts."""

    def named(test: Callable[[Service], bool]) -> tuple[str, ...]:
        return tuple(name for name, service in services.items() if test(service))

    messages = tuple(
        MessageEntry(m, named(lambda s, m=m: m in s.produces), named(lambda s, m=m: m in s.consumes))
        for m in all_messages()
    )
    rpcs = tuple(
        RpcEntry(r, named(lambda s, r=r: r in s.serves), named(lambda s, r=r: r in s.calls)) for r in all_rpcs()
    )
    shared = (
        Shared("thread logs", "thr.*.*", named(lambda s: s.writes_threads), named(lambda s: s.reads_threads)),
        Shared("routes", "$KV.routes.*", named(lambda s: s.writes_routes), named(lambda s: s.reads_routes)),
    )
    return Catalogue(messages, rpcs, shared)


def all_messages() -> list[type[Message]]:
    """Every message type of the contracts, by its type name: the classes that nothing else derives from."""
    found = {
        value
        for module in contract_modules()
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Message) and value.__module__ == module.__name__
    }
    leaves = [
        message for message in found if not any(other is not message and issubclass(other, message) for other in found)
    ]
    named = [message for message in leaves if hasattr(message, "verb")]
    return sorted(named, key=lambda message: (message.kind, message.message_type()))


def all_rpcs() -> list[Rpc[Any, Any]]:
    """Every rpc of the contracts, by its subject."""
    found = [value for module in contract_modules() for value in vars(module).values() if isinstance(value, Rpc)]
    return sorted({rpc.subject: rpc for rpc in found}.values(), key=lambda rpc: rpc.subject)


def contract_modules() -> list[Any]:
    """The modules of hatchery_common.contracts."""
    package = hatchery_common.contracts
    names = sorted(info.name for info in pkgutil.iter_modules(package.__path__))
    return [importlib.import_module(f"{package.__name__}.{name}") for name in names]


def first_sentence(thing: object) -> str:
    """The first line of a docstring, without its full stop."""
    return (inspect.getdoc(thing) or "").partition("\n")[0].rstrip(".")
