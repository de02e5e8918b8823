"""What operators see: reading, counting and tailing streams, and the dead letters."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import pytest
from hatchery_common.bus import Bus, OutgoingRow, Subscription
from hatchery_common.bus.errors import ReplaySkipsUnread
from hatchery_common.bus.replay import Operator
from hatchery_common.bus.scratch import Start
from hatchery_common.contracts.accounts import OpenAccount
from hatchery_common.contracts.billing import AccountOpened
from hatchery_common.contracts.threads import ThreadEntry, ThreadEntryType
from hatchery_common.errors import NotFound
from hatchery_common.testing.everything import everything, posted, until

Open = Callable[..., Awaitable[Bus]]


@pytest.fixture
async def filled(opened: Open) -> Bus:
    """600 events: 500 of t0, then 100 of t1."""
    bus = await opened(everything())
    rows = []
    for number in range(600):
        encoded = bus.encode(posted("t0" if number < 500 else "t1", number), id=f"p{number}")
        rows.append(OutgoingRow(f"p{number}", encoded.subject, encoded.headers, encoded.body))
    await bus.publish_rows(rows)
    return bus


async def ids(operator: Operator, **how: object) -> list[str | None]:
    return [record.id async for record in operator.read("EVT", **how)]  # type: ignore[arg-type]


async def test_a_stream_is_read_from_a_sequence_by_subject_and_from_its_end(filled: Bus, operator: Operator) -> None:
    assert await ids(operator) == [f"p{number}" for number in range(600)]
    assert await ids(operator, start=Start(sequence=598)) == ["p597", "p598", "p599"]
    assert await ids(operator, subjects=["evt.t1.>"], limit=2) == ["p500", "p501"]
    assert await ids(operator, start=Start(last=3)) == ["p597", "p598", "p599"]
    assert await ids(operator, subjects=["evt.t0.>"], start=Start(last=2)) == ["p498", "p499"]
    assert await ids(operator, subjects=["evt.t9.>"], start=Start(last=2)) == []
    assert await ids(operator, subjects=["evt.t9.>", "evt.t1.*.posted.*"], start=Start(last=1)) == ["p599"]


async def test_a_stream_is_read_from_a_time(filled: Bus, operator: Operator) -> None:
    await asyncio.sleep(0.01)
    moment = datetime.now(UTC)
    await filled.publish(posted("t2", 1), id="later")
    assert await ids(operator, start=Start(time=moment)) == ["later"]
    assert await operator.count("EVT", start=Start(time=moment)) == 1
    assert await operator.count("EVT") == 601


async def test_a_record_tells_where_and_what_it_is(filled: Bus, operator: Operator) -> None:
    record = await operator.show("EVT", 501)
    assert (record.sequence, record.subject, record.id) == (501, "evt.t1.ledger.posted.t1", "p500")
    assert record.type == "hatchery.ledger.posted.v1"
    assert abs((datetime.now(UTC) - record.time).total_seconds()) < 60
    with pytest.raises(NotFound):
        await operator.show("EVT", 999)


async def test_a_tail_shows_what_comes(filled: Bus, operator: Operator) -> None:
    seen: list[str | None] = []

    async def tail() -> None:
        async for record in operator.tail("EVT", subjects=["evt.t1.>"]):
            seen.append(record.id)  # noqa: PERF401 - it never ends

    tailing = asyncio.create_task(tail())
    await asyncio.sleep(0.2)
    await filled.publish(posted("t0", 1), id="other")
    await filled.publish(posted("t1", 1), id="new")
    await until(lambda: seen == ["new"])
    tailing.cancel()
    await asyncio.wait({tailing})


async def test_reading_leaves_no_consumer_behind(filled: Bus, operator: Operator) -> None:
    await ids(operator, limit=1)
    await ids(operator, start=Start(last=3))
    names = (await operator.jetstream.call("CONSUMER.NAMES.EVT"))["consumers"]
    assert names == ["everything"]


async def test_streams_and_durables_are_listed(filled: Bus, operator: Operator) -> None:
    states = {state.name: state for state in await operator.streams()}
    assert list(states) == ["CMD", "DLQ", "EVT", "KV_routes", "THREADS"]
    assert (states["EVT"].messages, states["EVT"].last_sequence) == (600, 600)
    assert states["EVT"].last_time is not None
    (durable,) = await operator.durables("CMD")
    assert (durable.name, durable.filters, durable.pending) == ("everything", ("cmd.*.account.open.*",), 0)


async def test_a_durable_reads_again_from_a_sequence(opened: Open, operator: Operator) -> None:
    bus = await opened(everything(consumes=(OpenAccount,)))
    seen: list[str] = []

    async def note(delivery: object) -> None:
        seen.append(delivery.id)  # type: ignore[attr-defined]

    for number in range(5):
        await bus.publish(OpenAccount(tenant="t1"), id=str(number))
    consumption = await bus.subscribe([Subscription(OpenAccount, note)])
    await until(lambda: len(seen) == 5)
    await consumption.stop()
    await operator.reset("CMD", "everything", 4)
    await bus.subscribe([Subscription(OpenAccount, note)])
    await until(lambda: seen[5:] == ["3", "4"])


async def test_a_durable_never_skips_what_it_has_not_done(opened: Open, operator: Operator) -> None:
    bus = await opened(everything(consumes=(OpenAccount,)))
    seen: list[str] = []

    async def note(delivery: object) -> None:
        seen.append(delivery.id)  # type: ignore[attr-defined]

    for number in range(2):
        await bus.publish(OpenAccount(tenant="t1"), id=str(number))
    consumption = await bus.subscribe([Subscription(OpenAccount, note)])
    await until(lambda: len(seen) == 2)
    await consumption.stop()
    for number in range(2, 5):
        await bus.publish(OpenAccount(tenant="t1"), id=str(number))
    with pytest.raises(ReplaySkipsUnread, match=r"up to sequence 2: from 5 on .* 2 messages, 3 to 4,") as refused:
        await operator.reset("CMD", "everything", 5)
    assert refused.value.hint == "start at 3 or before: --from-seq 3"
    assert (await operator.durable("CMD", "everything")).pending == 3
    await operator.reset("CMD", "everything", 3)
    await bus.subscribe([Subscription(OpenAccount, note)])
    await until(lambda: seen[2:] == ["2", "3", "4"])


async def test_messages_of_others_keep_no_durable_from_a_later_start(opened: Open, operator: Operator) -> None:
    bus = await opened(everything(consumes=(AccountOpened,)))
    for number in range(5):
        await bus.publish(posted("t0", number), id=f"p{number}")
    await operator.reset("EVT", "everything", 4)
    with pytest.raises(NotFound, match="no durable nobody"):
        await operator.reset("EVT", "nobody", 1)


async def test_a_long_thread_is_read_whole_and_purged(opened: Open, operator: Operator) -> None:
    bus = await opened(everything())
    last = 0
    for batch in range(6):
        entries = [
            ThreadEntry(
                id=f"{batch}-{n}", type=ThreadEntryType.TEXT_DELTA, thread_id="thd_1", at_ms=n, data={"t": "x" * 500}
            )
            for n in range(100)
        ]
        last = await bus.threads.append("t1", "thd_1", entries, expected_last=last)
    found = [entry.sequence async for entry in bus.threads.read("t1", "thd_1")]
    assert found == list(range(1, 601))
    assert await operator.purge_thread("thr.t1.thd_1") == 600
    assert await bus.threads.bounds("t1", "thd_1") == (0, 0)
