"""Appending to a thread's log under the expected last sequence: the fence that refuses zombies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hatchery_common.bus import SequenceConflict
from hatchery_common.clock import Clock, to_ms
from hatchery_common.contracts.threads import ThreadEntry, ThreadEntryType

from hatchery_agent.domain.errors import LeaseLost
from hatchery_agent.domain.folding import ThreadState
from hatchery_agent.ports import Lease, Log


@dataclass
class ThreadWriter:
    """One lease's hand on a thread's log: folds what it reads and what it writes."""

    log: Log
    lease: Lease
    clock: Clock
    state: ThreadState = field(default_factory=ThreadState)
    _count: int = 0

    async def open(self, quiet: int) -> None:
        """Fold the log from its last quiet point; from the start when the log is shorter than that (it was restored)."""
        _, last = await self.log.bounds(self.lease.tenant, self.lease.thread_id)
        self.state = ThreadState(last=quiet if quiet <= last else 0)
        await self.catch_up()

    async def catch_up(self) -> Sequence[ThreadEntry]:
        """Fold what was appended since; returns it."""
        fresh: list[ThreadEntry] = []
        reading = self.log.read(self.lease.tenant, self.lease.thread_id, after=self.state.last)
        async for item in reading:
            self.state.apply(item.sequence, item.entry)
            fresh.append(item.entry)
        return fresh

    def entry(
        self, kind: ThreadEntryType, run_id: str | None = None, attempt: int | None = None, **data: Any
    ) -> ThreadEntry:
        """A new entry; its id names run, fence and position, so that a repeated append recognises its own."""
        self._count += 1
        return ThreadEntry(
            id=f"{self._mark}{self._count}",
            type=kind,
            thread_id=self.lease.thread_id,
            at_ms=to_ms(self.clock.now()),
            run_id=run_id,
            attempt=attempt,
            data=data,
        )

    async def append(self, *entries: ThreadEntry) -> int:
        """Append all or none and fold them; raises LeaseLost when another writer was faster."""
        try:
            await self._append(entries)
        except SequenceConflict:
            # An append of ours whose answer was lost looks the same as a foreign one: the ids tell them apart.
            seen = await self.catch_up()
            if not all(entry.id.startswith(self._mark) for entry in seen):
                raise LeaseLost("another worker appended to this thread") from None
            if not {entry.id for entry in entries} <= {entry.id for entry in seen}:
                await self._append_again(entries)
        return self.state.last

    async def _append(self, entries: Sequence[ThreadEntry]) -> None:
        lease = self.lease
        last = await self.log.append(lease.tenant, lease.thread_id, entries, expected_last=self.state.last)
        for offset, entry in enumerate(entries, start=last - len(entries) + 1):
            self.state.apply(offset, entry)
        self.state.last = last

    async def _append_again(self, entries: Sequence[ThreadEntry]) -> None:
        try:
            await self._append(entries)
        except SequenceConflict:
            raise LeaseLost("another worker appended to this thread") from None

    @property
    def _mark(self) -> str:
        return f"{self.lease.holder}.{self.lease.fence}."
