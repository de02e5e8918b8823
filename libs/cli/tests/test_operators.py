"""The operators' commands against a real nats-server: what they print, what they change, what they refuse."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hatchery_cli.operating import gist, moment
from hatchery_cli.rendering import nkey_seed
from hatchery_cli.story import tell
from hatchery_common.bus import Bus, Delivery, Subscription
from hatchery_common.bus.scratch import Record
from hatchery_common.contracts.threads import PostMessage
from hatchery_common.errors import HatcheryError, InvalidInput
from operators_stage import INSTANCE, ROOT_KEY, told, worker


async def test_streams_are_listed_with_their_durables(bus_url: str, hatchery: Any):
    await told(bus_url)
    listed = json.loads((await hatchery("stream", "ls", "--json")).stdout)
    commands = next(stream for stream in listed if stream["name"] == "CMD")
    assert commands["messages"] == 3
    assert [durable["name"] for durable in commands["durables"]] == ["worker"]
    assert "worker" in (await hatchery("stream", "ls")).stdout


async def test_tail_prints_the_last_and_what_matches(bus_url: str, hatchery: Any):
    await told(bus_url)
    lines = (await hatchery("stream", "tail", "evt", "-n", "1", "--json")).stdout.splitlines()
    assert [json.loads(line)["type"] for line in lines] == ["hatchery.run.finished.v1"]
    found = (await hatchery("stream", "tail", "CMD", "--since", "1h", "-s", "cmd.*.thread.>")).stdout
    assert found.count("\n") == 1
    assert "thread.post" in found


async def test_show_prints_a_message_whole_and_names_a_missing_one(bus_url: str, hatchery: Any):
    await told(bus_url)
    shown = json.loads((await hatchery("stream", "show", "EVT", "1", "--json")).stdout)
    assert (shown["id"], shown["causation"], shown["body"]["run_id"]) == ("evt_1", "run_1", "run_1")
    assert "causation" in (await hatchery("stream", "show", "EVT", "1")).stdout
    missing = await hatchery("stream", "show", "EVT", "99")
    assert isinstance(missing.exception, HatcheryError)
    assert missing.exception.code == "not_found"


async def test_replay_is_dry_unless_told_and_then_only_the_durable_goes_back(bus_url: str, hatchery: Any):
    await told(bus_url)
    dry = json.loads((await hatchery("stream", "replay", "CMD", "--since", "1h", "--to", "worker", "--json")).stdout)
    assert (dry["messages"], dry["types"], dry["done"]) == (1, {"thread.post": 1}, False)
    again: list[str] = []
    done = await hatchery("stream", "replay", "CMD", "--from-seq", "1", "--to", "worker", "--execute")
    assert done.exception is None

    async def handle(delivery: Delivery[PostMessage]) -> None:
        again.append(delivery.id)
        seen.set()

    seen = asyncio.Event()
    async with Bus.open(bus_url, worker, seed=nkey_seed(ROOT_KEY, worker.name)) as bus:
        consumption = await bus.subscribe([Subscription(PostMessage, handle)])
        async with asyncio.timeout(10):
            await seen.wait()
        await consumption.stop()
    assert again == ["run_1"]
    listed = json.loads((await hatchery("stream", "ls", "--json")).stdout)
    assert next(stream for stream in listed if stream["name"] == "CMD")["messages"] == 3, "nothing was published"


async def test_a_replay_refuses_to_skip_what_is_not_done(bus_url: str, hatchery: Any):
    async with Bus.open(bus_url, worker, seed=nkey_seed(ROOT_KEY, worker.name)) as bus:
        for run in ("run_1", "run_2", "run_3"):
            post = PostMessage(tenant="ta", thread_id="thd_1", run_id=run, instance_id=INSTANCE, message_id=run)
            await bus.publish(post, id=run)
    for how in ((), ("--execute",)):
        refused = await hatchery("stream", "replay", "CMD", "--from-seq", "3", "--to", "worker", *how)
        assert isinstance(refused.exception, HatcheryError)
        assert refused.exception.code == "replay_skips_unread"
        assert "--from-seq 1" in str(refused.exception.hint)
    listed = json.loads((await hatchery("stream", "ls", "--json")).stdout)
    commands = next(stream for stream in listed if stream["name"] == "CMD")
    assert [durable["pending"] for durable in commands["durables"]] == [3]
    assert (
        await hatchery("stream", "replay", "CMD", "--from-seq", "1", "--to", "worker", "--execute")
    ).exception is None


async def test_a_replay_of_nothing_says_that_nothing_matches(bus_url: str, hatchery: Any):
    await told(bus_url)
    empty = await hatchery("stream", "replay", "CMD", "--from-seq", "90", "--to", "worker", "--execute")
    assert empty.exception is None
    assert empty.stdout.startswith("nothing matches: CMD holds no message that worker reads from there on")
    assert "--execute" not in empty.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("CMD",),
        ("CMD", "--since", "1h", "--from-seq", "1"),
        ("CMD", "--since", "1h", "--execute"),
        ("CMD", "--since", "1h", "--execute", "--to", "worker", "-s", "cmd.>"),
        ("CMD", "--since", "yesterday"),
        ("NOPE", "--since", "1h"),
        ("CMD", "--since", "1h", "--to", "nobody"),
    ],
)
async def test_a_replay_that_makes_no_sense_says_what_to_write(hatchery: Any, arguments: tuple[str, ...]):
    result = await hatchery("stream", "replay", *arguments)
    assert isinstance(result.exception, HatcheryError)
    assert result.exception.hint


async def test_the_story_of_an_instance_has_its_causes_and_nothing_else(bus_url: str, hatchery: Any):
    await told(bus_url)
    story = json.loads((await hatchery("events", "--instance", INSTANCE, "--json")).stdout)
    assert [(one["id"], one["caused_by"]) for one in story] == [
        ("cmd_0", None),
        ("run_1", None),
        ("evt_1", 2),
        ("evt_2", 2),
    ]
    text = (await hatchery("events", "-i", INSTANCE)).stdout
    assert "← 2" in text
    assert "duration_ms=12" in text


async def test_an_instance_nobody_ever_named_is_not_found(hatchery: Any):
    result = await hatchery("events", "--instance", "ins_unknown")
    assert isinstance(result.exception, HatcheryError)
    assert result.exception.code == "not_found"
    assert isinstance((await hatchery("events", "-i", "a b")).exception, InvalidInput)


def test_a_story_includes_what_was_caused_elsewhere_and_its_dead_letters():
    now = datetime(2026, 11, 20, tzinfo=UTC)

    def record(number: int, stream: str, subject: str, cause: str | None = None, **body: object) -> Record:
        headers = {"ce-id": f"id{number}", "ce-type": "hatchery.x.y.v1", **({"ce-causationid": cause} if cause else {})}
        moment = now + timedelta(seconds=number)
        return Record(stream, number, moment, subject, headers, json.dumps(body).encode())

    records = [
        record(3, "EVT", "evt.t.ledger.posted.tx1", "id2"),
        record(1, "CMD", f"cmd.t.instance.start.{INSTANCE}"),
        record(2, "EVT", "evt.t.usage.recorded.call", "id1", instance_id=INSTANCE),
        record(4, "DLQ", f"dlq.cmd.t.instance.start.{INSTANCE}"),
        record(5, "EVT", "evt.t.other.thing.ins_2", None, instance_id="ins_2"),
    ]
    chapters = tell(records, INSTANCE)
    assert [(c.record.sequence, c.cause, c.depth) for c in chapters] == [
        (1, None, 0),
        (2, 1, 1),
        (3, 2, 2),
        (4, None, 0),
    ]


def test_times_are_read_as_people_write_them():
    now = datetime(2026, 11, 20, 12, tzinfo=UTC)
    assert moment("90m", now) == datetime(2026, 11, 20, 10, 30, tzinfo=UTC)
    assert moment("2026-11-20T10:00") == datetime(2026, 11, 20, 10, tzinfo=UTC)
    for wrong in ("soon", "", "99999999999d"):
        with pytest.raises(InvalidInput):
            moment(wrong)


def test_the_gist_of_a_body_is_short_and_says_what_counts():
    body = {"state": {"status": "ready", "reason": None}, "operation_id": "op_1", "noise": "x" * 500}
    record = Record("EVT", 1, datetime.now(UTC), "evt.t.a.b.c", {}, json.dumps(body).encode())
    assert gist(record) == "status=ready operation_id=op_1"
