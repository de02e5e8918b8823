"""Envelope, lanes and small parts without a server."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
from hatchery_common.bus import BatchSubscription, UnreadableMessage
from hatchery_common.bus.delivery import Cause
from hatchery_common.bus.envelope import Placed, decode, encode, next_trace, placed
from hatchery_common.bus.jetstream import parse_time
from hatchery_common.bus.lanes import Lanes
from hatchery_common.bus.registry import Registry, stream_of
from hatchery_common.contracts.accounts import OpenAccount
from hatchery_common.contracts.billing import AccountOpened
from hatchery_common.testing.everything import until
from hatchery_common.testing.recording_bus import delivery_of


class Wire:
    def __init__(self, subject: str, headers: dict[str, str] | None, data: bytes) -> None:
        self.subject = subject
        self.headers = headers
        self.data = data
        self.reply = ""


PLACE = Placed("CMD", 7, 2)


def test_a_message_comes_back_as_it_was() -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    encoded = encode(OpenAccount(tenant="t1"), source="hatchery/test", id="one", time=moment)
    assert encoded.headers["Nats-Msg-Id"] == encoded.headers["ce-id"] == "one"
    assert encoded.headers["ce-specversion"] == "1.0"
    found = decode(Wire(encoded.subject, encoded.headers, encoded.body), Registry([OpenAccount]), PLACE)
    assert found.message == OpenAccount(tenant="t1")
    assert (found.time, found.sequence, found.deliveries) == (moment, 7, 2)
    assert (found.causation_id, found.correlation_id) == (None, "one")


def test_a_cause_gives_its_trace_and_correlation() -> None:
    cause = delivery_of(OpenAccount(tenant="t1"), id="wish")
    fact = encode(AccountOpened(tenant="t1", opened_at_ms=1), source="x", cause=cause).headers
    later = delivery_of(AccountOpened(tenant="t1", opened_at_ms=1), id="fact", cause=cause)
    last = encode(AccountOpened(tenant="t1", opened_at_ms=2), source="x", cause=later).headers
    assert (fact["ce-causationid"], fact["ce-correlationid"]) == ("wish", "wish")
    assert (last["ce-causationid"], last["ce-correlationid"]) == ("fact", "wish")
    remembered = encode(AccountOpened(tenant="t1", opened_at_ms=3), source="x", cause=Cause("wish")).headers
    assert (remembered["ce-causationid"], remembered["ce-correlationid"]) == ("wish", "wish")
    traces = {cause.traceparent[3:35], fact["traceparent"][3:35], last["traceparent"][3:35]}
    assert len(traces) == 1
    assert fact["traceparent"] != cause.traceparent


def test_a_broken_trace_is_replaced() -> None:
    assert len(next_trace("nonsense")) == 55
    assert next_trace(None) != next_trace(None)


def test_unknown_fields_are_ignored_so_that_additions_stay_readable() -> None:
    encoded = encode(OpenAccount(tenant="t1"), source="x")
    body = b'{"tenant":"t1","added_later":{"x":1}}'
    found = decode(Wire(encoded.subject, encoded.headers, body), Registry([OpenAccount]), PLACE)
    assert found.message == OpenAccount(tenant="t1")


@pytest.mark.parametrize("missing", ["ce-id", "ce-source", "ce-tenantid", "ce-time", "ce-type"])
def test_a_missing_header_is_an_unreadable_message(missing: str) -> None:
    encoded = encode(OpenAccount(tenant="t1"), source="x")
    headers = {name: value for name, value in encoded.headers.items() if name != missing}
    with pytest.raises(UnreadableMessage):
        decode(Wire(encoded.subject, headers, encoded.body), Registry([OpenAccount]), PLACE)


def test_a_time_that_is_none_is_an_unreadable_message() -> None:
    encoded = encode(OpenAccount(tenant="t1"), source="x")
    with pytest.raises(UnreadableMessage, match="ce-time"):
        decode(
            Wire(encoded.subject, {**encoded.headers, "ce-time": "soon"}, encoded.body), Registry([OpenAccount]), PLACE
        )


def test_the_place_is_read_from_both_forms_of_the_reply() -> None:
    assert placed("$JS.ACK.CMD.billing.3.41.40.1700000000000000000.5") == Placed("CMD", 41, 3)
    assert placed("$JS.ACK.hub.acchash.CMD.billing.3.41.40.1700000000000000000.5.rnd") == Placed("CMD", 41, 3)


@pytest.mark.parametrize(
    ("subject", "stream"),
    [
        ("cmd.t.a.b.c", "CMD"),
        ("evt.t.a.b.c", "EVT"),
        ("thr.t.x", "THREADS"),
        ("dlq.cmd.t", "DLQ"),
        ("$KV.routes.i", "KV_routes"),
    ],
)
def test_each_subject_has_its_stream(subject: str, stream: str) -> None:
    assert stream_of(subject) == stream


def test_a_subject_of_no_stream_is_an_error() -> None:
    with pytest.raises(ValueError, match="no stream"):
        stream_of("rpc.x.y.v1")


def test_times_of_the_server_are_read() -> None:
    assert parse_time("2026-11-20T11:50:00.123456789Z") == datetime(2026, 11, 20, 11, 50, 0, 123456, tzinfo=UTC)
    assert parse_time("2026-11-20T11:50:00Z") == datetime(2026, 11, 20, 11, 50, 0, tzinfo=UTC)
    assert parse_time("2026-11-20T11:50:00.5+00:00") == datetime(2026, 11, 20, 11, 50, 0, 500000, tzinfo=UTC)


async def test_lanes_keep_order_within_a_key_and_run_keys_side_by_side() -> None:
    running: set[str] = set()
    most = 0
    done: list[tuple[str, int]] = []

    async def run(item: tuple[str, int]) -> float | None:
        nonlocal most
        assert item[0] not in running
        running.add(item[0])
        most = max(most, len(running))
        await asyncio.sleep(0.001)
        running.discard(item[0])
        done.append(item)
        return None

    lanes: Lanes[tuple[str, int]] = Lanes(run, concurrency=4)
    for number in range(10):
        for key in "abcdefgh":
            lanes.put(key, (key, number))
    await until(lambda: len(done) == 80)
    assert most == 4
    assert all([number for found, number in done if found == key] == list(range(10)) for key in "abcdefgh")
    assert await lanes.stop(1) == []


async def test_a_waiting_head_holds_its_lane_but_no_worker() -> None:
    tries: list[str] = []

    async def run(item: str) -> float | None:
        tries.append(item)
        return 0.05 if item == "a1" and tries.count("a1") < 3 else None

    lanes: Lanes[str] = Lanes(run, concurrency=1)
    for item in ("a1", "a2", "b1", "b2"):
        lanes.put(item[0], item)
    await until(lambda: "a2" in tries)
    assert tries == ["a1", "b1", "b2", "a1", "a1", "a2"]
    await lanes.stop(1)


async def test_stopped_lanes_return_what_is_not_done() -> None:
    began = asyncio.Event()

    async def run(item: str) -> float | None:
        began.set()
        await asyncio.sleep(0.05)
        return None

    lanes: Lanes[str] = Lanes(run)
    for item in ("a1", "a2", "a3"):
        lanes.put("a", item)
    await began.wait()
    assert await lanes.stop(1) == ["a2", "a3"]


async def test_a_delivery_for_tests_looks_like_a_real_one() -> None:
    found = delivery_of(AccountOpened(tenant="t1", opened_at_ms=1), id="x", sequence=9)
    assert (found.id, found.sequence, found.stream, found.subject) == ("x", 9, "EVT", "evt.t1.account.opened.t1")
    assert BatchSubscription((AccountOpened,), lambda _: asyncio.sleep(0)).max_messages == 200
