"""Streams: they name their errors and their limit, and pass on what only later releases know."""

from __future__ import annotations

import pytest
from hatchery_api.domain.threads import fold
from hatchery_api.routes.sse import HEARTBEAT, EventStream
from hatchery_common.bus.errors import BusUnavailable
from hatchery_common.contracts.threads import ThreadEntry, ThreadEntryType
from hatchery_common.sse import read_events
from structlog.testing import CapturingLogger

ME = {"X-OA-Internal-Key": "oa-internal-key-0123456789", "X-OA-User-Id": "ada"}


async def told(stream):
    return b"".join([part async for part in stream.body_iterator]).decode()


def events(text):
    return [(one.event, one.data) for one in read_events(text.split("\n"))]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (BusUnavailable("the log is away"), "bus_unavailable", "the log is away"),
        (ValueError("password=hunter2"), "internal", "something went wrong here; it has been logged"),
    ],
)
async def test_a_stream_names_its_errors(error, code, message):
    async def failing():
        yield HEARTBEAT
        raise error

    log = CapturingLogger()
    text = await told(EventStream(failing(), log=log))
    assert events(text)[-1] == ("error", {"code": code, "message": message, "hint": None})
    assert [call.method_name for call in log.calls] == (["exception"] if code == "internal" else [])


async def test_a_stream_has_a_limit():
    async def endless():
        while True:
            yield HEARTBEAT

    text = await told(EventStream(endless(), log=CapturingLogger(), limit_s=0))
    assert text.endswith(": please reconnect\n\n")


def of_tomorrow(run_id="run_1"):
    given = {"id": "e", "type": "tool.called", "thread_id": "t", "at_ms": 1, "run_id": run_id, "attempt": 1}
    return ThreadEntry.model_validate(given)


async def test_an_entry_of_a_later_release_is_passed_on(world):
    await world.client.post("/api/openclaw/instance", headers=ME)
    thread = (await world.client.post("/api/threads", headers=ME)).json()["data"]["thread_id"]
    tenant = world.calls.threads[thread][0]
    world.logs.add(tenant, thread, of_tomorrow().type, "run_1")
    answer = await world.client.get(f"/api/threads/{thread}/events", headers=ME)
    assert [(event, data["type"]) for event, data in events(answer.text)] == [("tool.called", "tool.called")]


def test_a_snapshot_passes_over_what_it_does_not_know():
    known = ThreadEntry(id="e", type=ThreadEntryType.RUN_STARTED, thread_id="t", at_ms=1, run_id="run_1", attempt=1)
    assert ThreadEntry.model_validate_json(known.model_dump_json()).type is ThreadEntryType.RUN_STARTED
    snapshot = fold(enumerate([known, of_tomorrow(), of_tomorrow("run_2")], 1))
    assert (snapshot.sequence, {name: run.status for name, run in snapshot.runs.items()}) == (3, {"run_1": "running"})
