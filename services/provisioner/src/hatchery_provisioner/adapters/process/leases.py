"""What the process driver needs to keep: which port and which user belong to which instance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

CONTROLLER_OFFSET = 100  # the controller answers this many ports above its gateway


@dataclass(frozen=True)
class Range:
    """Numbers that may be given out."""

    first: int
    count: int

    @property
    def last(self) -> int:
        return self.first + self.count - 1

    @property
    def numbers(self) -> range:
        return range(self.first, self.first + self.count)


@dataclass(frozen=True)
class Lease:
    """The gateway's port and, as root, the user of an instance."""

    port: int
    uid: int | None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def controller_port(self) -> int:
        return self.port + CONTROLLER_OFFSET

    @property
    def controller(self) -> str:
        return f"http://127.0.0.1:{self.controller_port}"


class Leases(Protocol):
    """Durable before they are used. A released port or user rests for a while, and is given again only when no fresh one is left.

    Raises DriverCapacity when none is left.
    """

    async def reserve(self, instance_id: str) -> Lease:
        """The instance's lease, made if there is none. Raises DriverPermanent for a tenant that is not served here."""
        ...

    async def find(self, instance_id: str) -> Lease | None: ...

    async def move(self, instance_id: str, from_port: int) -> Lease:
        """Another port, because a stranger holds this one."""
        ...

    async def release(self, instance_id: str) -> None: ...
