"""The owner lock: one replica of a service runs its loops, under a Postgres advisory lock and a growing epoch.

The lock's own connection carries `idle_session_timeout`, so a process that is frozen loses its session, and with it the lock,
after the lease. What it still writes on waking is refused by the epoch (`Database.unit_of_work(epoch=…)`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg
from structlog.typing import FilteringBoundLogger

from hatchery_common.database import Database, translated
from hatchery_common.errors import DependencyUnavailable, OwnershipLost
from hatchery_common.guard import guarded

# InternalClientError: a connection that breaks while another operation of it is under way
_LOST = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)


@dataclass(frozen=True)
class Ownership:
    """What an elected process holds: pass `epoch` to every transaction, label driver effects with it."""

    epoch: int


class LeaseLost(Exception):
    """The lock's connection is gone; the loops under it must stop."""


class OwnerLock:
    """Elects this process among the replicas of one service and runs the loops while it is the owner."""

    def __init__(self, database: Database, log: FilteringBoundLogger, *, lease_s: float = 10.0) -> None:
        self.epoch: int | None = None
        self._database = database
        self._log = log
        self._lease_s = lease_s

    async def run(self, loops: Sequence[Callable[[Ownership], Awaitable[None]]]) -> None:
        """Stand for election for ever; while elected run the loops, and cancel them at once when the lock is lost.

        An error of a loop ends the call (the supervisor restarts the service); a lost lock or database only stands again.
        """
        while True:
            try:
                await self._term(loops)
            except (LeaseLost, DependencyUnavailable) as lost:
                self._log.warning("owner.lost", reason=str(lost))
            await asyncio.sleep(0.2)  # a refused connection must not spin

    async def _term(self, loops: Sequence[Callable[[Ownership], Awaitable[None]]]) -> None:
        with translated("standing for owner"):
            connection = await asyncpg.connect(
                self._database.url, timeout=5, command_timeout=5, server_settings=self._session()
            )
        try:
            epoch = await self._elect(connection)
            self.epoch = epoch
            self._log.info("owner.elected", epoch=epoch)
            await self._lead(connection, epoch, loops)
        finally:
            self.epoch = None
            with contextlib.suppress(*_LOST):
                await connection.close(timeout=1)

    def _session(self) -> dict[str, str]:
        return {
            "search_path": self._database.schema,
            "application_name": f"hatchery-{self._database.schema}-owner",
            "idle_session_timeout": str(int(self._lease_s * 1000)),
        }

    async def _elect(self, connection: Any) -> int:
        """Wait for the lock; returns the new epoch. The wait is endless: a standby has nothing else to do."""
        name = f"owner:{self._database.schema}"
        holder = f"{socket.gethostname()}:{os.getpid()}"
        try:
            while not await connection.fetchval(  # noqa: ASYNC110 - another session sets no event here
                "SELECT pg_try_advisory_lock(hashtext($1))", name
            ):
                await asyncio.sleep(min(1.0, self._lease_s / 5))
            return await connection.fetchval(
                "INSERT INTO owner (one, epoch, holder, elected_at) VALUES (true, 1, $1, now()) "
                "ON CONFLICT (one) DO UPDATE SET epoch = owner.epoch + 1, holder = $1, elected_at = now() RETURNING epoch",
                holder,
            )
        except _LOST as error:
            raise LeaseLost(f"the lock's connection ended before election: {type(error).__name__}") from error

    async def _lead(self, connection: Any, epoch: int, loops: Sequence[Callable[[Ownership], Awaitable[None]]]) -> None:
        channel = f"outbox_{self._database.schema}"
        await connection.add_listener(channel, self._wake_relay)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._beat(connection), name="owner-beat")
                for loop in loops:
                    group.create_task(guarded(loop(Ownership(epoch)), "an owner loop"))
        except* (LeaseLost, DependencyUnavailable, OwnershipLost) as lost:  # one clause: two would end as a group again
            raise LeaseLost(str(lost.exceptions[0])) from None

    def _wake_relay(self, *_notification: object) -> None:
        self._database.outbox_wake.set()

    async def _beat(self, connection: Any) -> None:
        """Keep the session from idling out; any failure means that the lock may be another's."""
        while True:
            await asyncio.sleep(self._lease_s / 5)
            try:
                await connection.fetchval("SELECT 1", timeout=self._lease_s / 2)
            except _LOST as error:
                raise LeaseLost(f"the lock's connection ended: {type(error).__name__}") from error
