"""The order of a replay: events by their live positions, applied in runs."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping

from hatchery_billing.domain.book import Fact


class Order:
    """Hands events out in the order of their live positions, holding back those that came too early."""

    def __init__(self, positions: Mapping[str, int]) -> None:
        self._positions = positions
        self._expected = 1
        self._waiting: list[tuple[int, Fact]] = []
        self._seen: set[str] = set()

    def put(self, fact: Fact) -> None:
        """Take an event in; the same one published again is passed over."""
        if fact.event_id not in self._seen:
            self._seen.add(fact.event_id)
            heapq.heappush(self._waiting, (self._positions[fact.event_id], fact))

    def ready(self, *, rest: bool = False) -> list[Fact]:
        """The events whose turn it is; with `rest`, all that are left, over gaps."""
        facts: list[Fact] = []
        while self._waiting and (rest or self._waiting[0][0] == self._expected):
            position, fact = heapq.heappop(self._waiting)
            facts.append(fact)
            self._expected = position + 1
        return facts


def runs(facts: Iterable[Fact], *, most: int) -> Iterator[list[Fact]]:
    """In their given order, at most so many at a time: a batch is sorted by sequence, so a run ends where the sequence falls."""
    run: list[Fact] = []
    for fact in facts:
        if run and (len(run) == most or fact.sequence <= run[-1].sequence):
            yield run
            run = []
        run.append(fact)
    if run:
        yield run
