"""A stack on servers that somebody else runs: NATS with the rendered users, and Postgres, both by URL."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
from hatchery_common.testing.nats import NatsServer
from hatchery_common.testing.postgres import LocalPostgres
from whole_stack import whole_stack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
_ROOT_KEY = "5a" * 32


def test_servers_by_url_are_used_and_left_alone(
    own_nats: NatsServer, own_postgres: LocalPostgres, user: Callable[[], str]
) -> None:
    with whole_stack(HATCHERY_ROOT_KEY=_ROOT_KEY) as stack:
        command = [sys.executable, "-m", "hatchery_cli", "bus", "config"]  # by the key alone: there is no directory yet
        environment = stack.environment | {"HATCHERY_DIR": str(stack.directory)}
        rendered = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert rendered.returncode == 0, rendered.stderr
        own_nats.authorization = rendered.stdout
        own_nats.start()
        stack.options = ["--nats-url", own_nats.url, "--database-url", own_postgres.server.url]
        stack.up()
        assert set(stack.status()["parts"]) == {"services"}

        ann = stack.visitor(user())
        ann.wish("provision")
        assert ann.say(ann.thread()["thread_id"], "hello").end.event == "run.finished"
        ann.wish("delete")
        assert stack.json("billing", "verify")["ok"]
        stack.down()
        assert stack.processes() == []
    own_nats.wait()
    assert own_postgres.server.pid is not None
    subprocess.run(["kill", "-0", str(own_postgres.server.pid)], check=True)
