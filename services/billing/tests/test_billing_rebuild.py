"""Rebuild on streams that are not whole: it says what is missing, whatever follows, and tells late events from lost ones."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from hatchery_billing.adapters.ledger import SqlLedger
from hatchery_billing.audit import rebuild
from hatchery_billing.audit.order import runs
from hatchery_billing.domain.book import Fact
from hatchery_common.database import Database

MANY = 33_000  # a statement of Postgres takes 32,767 parameters
APPLIED = "INSERT INTO events SELECT n, 'evt_' || n, 't', 'ta', n, 'stale' FROM generate_series(1, :many) n"


async def test_many_events_behind_a_missing_one_are_replayed(database: Database, sample: Any):
    async with database.engine.begin() as connection:
        await connection.execute(sa.text(APPLIED), {"many": MANY})
        await connection.execute(sa.text("INSERT INTO cursors VALUES ('EVT', :many, :many, 0)"), {"many": MANY})
    opened = sample.opened("c1")
    stream = [sample.delivery(opened) for _ in range(MANY)][1:]
    report = await rebuild(database.url, sample.on_stream(stream))
    found = {finding.code: finding.count for finding in report.findings}
    assert report.replayed == MANY - 1
    assert found["event_not_on_stream"] == 1


@pytest.mark.parametrize(
    ("settled_to", "lost", "pending"), [(1, [], 2), (2, ["evt_2 (sequence 2)"], 1), (None, ["evt_2 (sequence 2)"], 1)]
)
async def test_what_is_not_acknowledged_yet_is_pending_and_not_lost(
    ledger: SqlLedger, database: Database, sample: Any, settled_to: int | None, lost: list[str], pending: int
):
    """The second is being delivered again, the third came first, the fourth was never delivered."""
    first, second, third, fourth = [sample.delivery(sample.recorded(f"c{n}")) for n in range(1, 5)]
    await ledger.apply([first, third], posted_at_ms=0)
    stream = sample.on_stream([first, second, third, fourth])
    report = await rebuild(database.url, stream, settled_to=settled_to)
    assert [example for finding in report.findings for example in finding.examples] == lost
    assert (report.pending, report.ok) == (pending, not lost)


def test_a_run_ends_where_the_sequence_falls_and_where_it_is_long_enough(sample: Any):
    facts = [Fact(f"evt_{number}", number, sample.opened("c")) for number in (1, 2, 3, 4, 5, 2, 6, 7)]
    assert [[fact.sequence for fact in run] for run in runs(facts, most=3)] == [[1, 2, 3], [4, 5], [2, 6, 7]]
