"""The operators' commands against a real nats-server: what they print, what they change, what they refuse."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hatchery_cli.main import build
from hatchery_cli.operating import gist, moment
from hatchery_cli.rendering import authorization, nkey_seed
from hatchery_cli.story import tell
from hatchery_common.bus import Bus, Delivery, Subscription
from hatchery_common.bus.authorization import ADMIN
from hatchery_common.bus.replay import Operator
from hatchery_common.bus.scratch import Record
from hatchery_common.contracts.instances import StopInstance
from hatchery_common.contracts.threads import PostMessage, RunFinished, RunStarted
from hatchery_common.errors import HatcheryError, InvalidInput, Retry
from hatchery_common.service import Service
from hatchery_common.testing.nats import NatsServer

NEVER = asynccontextmanager(lambda context: None)
worker = Service(
    name="worker",
    open=NEVER,  # pyright: ignore
    consumes=(PostMessage,),
    produces=(PostMessage, RunStarted, RunFinished, StopInstance),
)
INSTANCE = "ins_1"
ROOT_KEY = bytes(range(32))


@dataclass
class Result:
    """What a command line did."""

    stdout: str
    exception: Exception | None = None


def invoke(*arguments: str) -> Result:
    """Run a command line here, as `hatchery` would, with its output caught."""
    out = io.StringIO()
    try:
        with redirect_stdout(out):
            build()(list(arguments), standalone_mode=False)
    except HatcheryError as error:
        return Result(out.getvalue(), error)
    return Result(out.getvalue())


class Refusal(HatcheryError):
    code = "refusal"
    retry = Retry.NEVER


@pytest.fixture
async def bus_url(own_nats: NatsServer) -> str:
    """A server that lets in only whom the rendered authorization names."""
    own_nats.authorization = authorization(ROOT_KEY, [worker])
    own_nats.start()
    async with Operator.open(own_nats.url, seed=nkey_seed(ROOT_KEY, ADMIN)) as operator:
        await operator.migrate([worker])
    return own_nats.url


@pytest.fixture
def hatchery(bus_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Callable[..., Awaitable[Result]]:
    """Runs one command line against the server, as bus-admin by the key that follows from the root key."""
    monkeypatch.setenv("HATCHERY_ROOT_KEY", ROOT_KEY.hex())
    monkeypatch.setenv("HATCHERY_DIR", str(tmp_path / "none"))

    async def run(*arguments: str) -> Result:
        return await asyncio.to_thread(invoke, *arguments, "--nats-url", bus_url)

    return run


async def told(bus_url: str, *, dead: bool = False) -> None:
    """A post, what it led to, an unrelated instance, and perhaps a dead letter."""

    async def handle(delivery: Delivery[PostMessage]) -> None:
        if dead:
            raise Refusal("this one is never handled")
        facts = {"tenant": "ta", "run_id": delivery.id, "thread_id": "thd_1", "instance_id": INSTANCE}
        await bus.publish(RunStarted(**facts), cause=delivery, id="evt_1")
        await bus.publish(RunFinished(**facts, duration_ms=12), cause=delivery, id="evt_2")
        done.set()

    async def bury(*_: object) -> None:
        done.set()

    done = asyncio.Event()
    async with Bus.open(bus_url, worker, seed=nkey_seed(ROOT_KEY, worker.name)) as bus:
        await bus.publish(
            StopInstance(tenant="ta", instance_id=INSTANCE, generation=2, operation_id="op_1"), id="cmd_0"
        )
        await bus.publish(
            PostMessage(tenant="ta", thread_id="thd_1", run_id="run_1", instance_id=INSTANCE, message_id="msg_1"),
            id="run_1",
        )
        await bus.publish(StopInstance(tenant="ta", instance_id="ins_2", generation=1, operation_id="op_2"), id="cmd_9")
        consumption = await bus.subscribe([Subscription(PostMessage, handle)], on_dead=bury)
        async with asyncio.timeout(10):
            await done.wait()
        await consumption.stop()


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


async def test_dead_letters_are_listed_and_sent_again(bus_url: str, hatchery: Any):
    await told(bus_url, dead=True)
    letters = json.loads((await hatchery("stream", "dlq", "ls", "--json")).stdout)
    assert [(one["id"], one["code"], one["durable"]) for one in letters] == [("run_1", "refusal", "worker")]
    assert "refusal" in (await hatchery("stream", "dlq", "ls")).stdout
    number = str(letters[0]["sequence"])
    assert json.loads((await hatchery("stream", "dlq", "redrive", number, "--json")).stdout)["executed"] is False
    sent = json.loads((await hatchery("stream", "dlq", "redrive", number, "--execute", "--json")).stdout)
    again = json.loads((await hatchery("stream", "show", "CMD", str(sent["letters"][0]["sent_as"]), "--json")).stdout)
    assert (again["id"], again["subject"]) == ("run_1", "cmd.ta.thread.post.thd_1")
    assert isinstance((await hatchery("stream", "dlq", "redrive", "77")).exception, HatcheryError)
    assert isinstance((await hatchery("stream", "dlq", "redrive")).exception, InvalidInput)


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
