"""What the server refuses is named for as long as it is refused: over restarts, and not after the cure."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from hatchery_common.bus.authorization import ADMIN, render
from hatchery_common.bus.connection import Connection
from hatchery_common.bus.nkeys import public_of, seed_of
from hatchery_common.bus.violations import Violations
from hatchery_common.service import Service
from hatchery_common.testing.everything import DOUBLE, everything, until
from hatchery_common.testing.nats import NatsServer

SEEDS = {name: seed_of(os.urandom(32)) for name in (ADMIN, "everything")}


def rights(service: Service) -> str:
    return render([service], {name: public_of(seed) for name, seed in SEEDS.items()})


def test_how_long_each_refusal_counts() -> None:
    """A publish for a minute, an answer for ten seconds, a subscription until it is asked for again."""
    now = [0.0]
    violations = Violations("agent", lambda: now[0])
    assert violations.note('nats: permissions violation for publish to "evt.t1.run.ended.r1"')
    assert violations.note('nats: permissions violation for publish to "_inbox_api.x.y"')
    assert violations.note('nats: permissions violation for subscription to "rpc.agent.get.v1" using queue "agent"')
    assert not violations.note("nats: unexpected eof")
    assert violations.count == 3
    assert violations.problem() == (
        'agent may not do this on the bus: permissions violation for publish to "evt.t1.run.ended.r1"'
    )
    now[0] = 30.0
    assert "evt.t1" in str(violations.problem())
    now[0] = 61.0
    assert "subscription" in str(violations.problem())
    now[0] = 1e6
    assert violations.refuses_subscription("RPC.agent.get.v1")
    violations.forget_subscription("rpc.agent.get.v1")
    assert violations.problem() is None


@pytest.mark.chaos
async def test_a_refused_subscription_is_named_after_a_restart_and_granted_after_a_reload(own_nats: NatsServer) -> None:
    own_nats.authorization = rights(everything(serves=()))
    own_nats.start()
    heard: list[Any] = []

    async def hear(raw: Any) -> None:
        heard.append(raw.data)

    connection = Connection(own_nats.url, "everything", SEEDS["everything"], ask_again_s=0.3)
    await connection.open()
    await connection.subscribe(DOUBLE.subject, hear)
    await until(lambda: DOUBLE.subject in str(connection.problem()))
    own_nats.kill()
    await until(lambda: not connection.connected)
    own_nats.start()
    await until(lambda: connection.connected and DOUBLE.subject in str(connection.problem()))
    own_nats.authorization = rights(everything())
    own_nats.write_config()
    os.kill(own_nats.pid, signal.SIGHUP)
    await until(lambda: connection.problem() is None)
    asker = Connection(own_nats.url, "asker", SEEDS[ADMIN])
    await asker.open()
    await asker.publish(DOUBLE.subject, b"1")
    await until(lambda: heard == [b"1"])
    await asker.close()
    await connection.close()
