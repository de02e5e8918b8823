"""What the runtime-proxy needs of the world, and the errors of gateways.

HatcheryError
├── DependencyUnavailable
│   ├── GatewayUnreachable      nothing answers at the machine's address, or a stranger does, or the connection broke
│   │   └── GatewayConnectionLost       in the middle of an answer
│   ├── GatewayTimeout          it answers, but not in time
│   ├── GatewayUnavailable      it says that it is restarting or suspended
│   ├── ControllerUnreachable   the machine's controller does not answer
│   └── ProviderUnavailable     the model provider does not answer; `context["unspent"]`: it spent nothing on the call
│       ├── ProviderTimeout             not in time
│       ├── ProviderFailed              with a status of its own trouble
│       └── ProviderCredentialsRefused  it refuses the operator's key
└── InvalidInput
    ├── GatewayRejected         it understood and refused: `context["gateway_code"]` is its own code
    └── ProviderRefused         the model provider does not allow this request; it spent nothing
Refused
└── GatewayRefusedIdentity      it does not know the identity we sent: a defect of the machine's configuration
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from hatchery_common.contracts.gateways import UsageOpened, UsageRecorded
from hatchery_common.errors import DependencyUnavailable, InvalidInput, Refused

from hatchery_runtime_proxy.domain.chat import ChatEvent


class GatewayUnreachable(DependencyUnavailable):
    """Nothing answers at the machine's address, or another user's program does, or the connection broke."""

    code = "gateway_unreachable"


class GatewayConnectionLost(GatewayUnreachable):
    """The connection broke in the middle of an answer."""

    code = "gateway_connection_lost"


class GatewayTimeout(DependencyUnavailable):
    """The gateway did not answer in time."""

    code = "gateway_timeout"


class GatewayUnavailable(DependencyUnavailable):
    """The gateway says that it is restarting, suspended or still starting; safe to repeat."""

    code = "gateway_unavailable"


class GatewayRejected(InvalidInput):
    """The gateway refused the request; `context["gateway_code"]` is its code."""

    code = "gateway_rejected"


class GatewayRefusedIdentity(Refused):
    """The gateway refused the identity that Hatchery sent."""

    code = "gateway_refused_identity"


class ControllerUnreachable(DependencyUnavailable):
    """The machine's controller does not answer as it should."""

    code = "controller_unreachable"


class ProviderUnavailable(DependencyUnavailable):
    """The model provider does not answer; nothing of an answer was received."""

    code = "provider_unavailable"


class ProviderTimeout(ProviderUnavailable):
    """The model provider did not answer in time."""

    code = "provider_timeout"


class ProviderFailed(ProviderUnavailable):
    """The model provider answered that it is in trouble."""

    code = "provider_failed"


class ProviderCredentialsRefused(ProviderUnavailable):
    """The model provider refuses the operator's credentials: nothing that a machine or its owner could mend."""

    code = "provider_credentials_refused"


class ProviderRefused(InvalidInput):
    """The model provider does not allow this request, or its account does not cover it; nothing was spent."""

    code = "provider_refused"


class Identity(StrEnum):
    """As whom we speak to a gateway."""

    OWNER = "owner"
    SERVICE = "svc"


@dataclass(frozen=True)
class Machine:
    """One running machine, as a route shows it; with a uid, only that user's program is spoken to at the address."""

    machine_id: str
    endpoint: str
    controller: str | None = None
    endpoint_uid: int | None = None
    controller_uid: int | None = None


@dataclass(frozen=True)
class Hello:
    """What a gateway says of itself at an authenticated connection; times are of its own clock."""

    version: str
    boot_id: str
    scopes: tuple[str, ...]
    started_at_ms: int  # at the latest


@dataclass(frozen=True)
class Answer:
    """An HTTP answer of a gateway, read whole."""

    status: int
    body: Any


@dataclass(frozen=True)
class ByteStream:
    """An HTTP answer whose body is passed through as it comes."""

    status: int
    content_type: str
    chunks: AsyncIterator[bytes]


class Gateways(Protocol):
    """Gateways by machine. Every method has a timeout and raises the errors of this module; reads are safe to repeat."""

    async def ready(self, machine: Machine) -> bool:
        """Whether `/ready` says so."""
        ...

    async def hello(self, machine: Machine, identity: Identity) -> Hello:
        """A fresh authenticated WebSocket connection, closed again: the readiness probe's proof."""
        ...

    async def call(
        self, machine: Machine, method: str, params: Mapping[str, Any], identity: Identity = Identity.OWNER
    ) -> dict[str, Any]:
        """A WebSocket method's payload."""
        ...

    def chat(self, machine: Machine, session_key: str, message: str, idempotency_key: str) -> AsyncGenerator[ChatEvent]:
        """One turn, ending with exactly one terminal event; leaving early never cancels the gateway's run.

        The same key never starts a second run, also across a restart of the gateway: what was interrupted ends as such.
        """
        ...

    async def post(self, machine: Machine, path: str, body: Any, headers: Mapping[str, str]) -> Answer:
        """An HTTP POST answered whole."""
        ...

    def stream(
        self, machine: Machine, path: str, body: bytes, headers: Mapping[str, str]
    ) -> AbstractAsyncContextManager[ByteStream]:
        """An HTTP POST whose answer streams; leaving the context cancels it."""
        ...


class Controllers(Protocol):
    """Machines' controllers; raises ControllerUnreachable."""

    async def restart_gateway(self, machine: Machine, reason: str) -> dict[str, Any]: ...

    async def state(self, machine: Machine) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Completion:
    """A provider's answer: the status, content type and when to ask again first, then bytes."""

    status: int
    content_type: str
    chunks: AsyncIterator[bytes]
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


class ModelProvider(Protocol):
    """One source of chat completions; raises ProviderUnavailable before the first byte."""

    @property
    def name(self) -> str: ...

    @property
    def models(self) -> tuple[str, ...]: ...

    def complete(self, body: Mapping[str, Any]) -> AbstractAsyncContextManager[Completion]: ...


class UsageLog(Protocol):
    """Where usage goes; returns when the bus has acknowledged, raises DependencyUnavailable."""

    async def opened(self, event: UsageOpened) -> None: ...

    async def recorded(self, event: UsageRecorded) -> None: ...
