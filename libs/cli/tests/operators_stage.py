"""A real nats-server with one service on it, and command lines run against it."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

import pytest
from hatchery_cli.main import build
from hatchery_cli.rendering import authorization, nkey_seed
from hatchery_common.bus import Bus, Delivery, Subscription
from hatchery_common.bus.authorization import ADMIN
from hatchery_common.bus.replay import Operator
from hatchery_common.contracts.instances import StopInstance
from hatchery_common.contracts.threads import PostMessage, RunFinished, RunStarted
from hatchery_common.errors import HatcheryError, Retry
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
