"""The supervisor over fakes: order of the stop, and what a sick disk does."""

import asyncio
import errno
import json
import os
import time
from pathlib import Path

import pytest
from hatchery_controller.board import Board
from hatchery_controller.domain.bundle import parse_bundle
from hatchery_controller.domain.ladder import Ladder, Limits, Moment, Phase, Probe
from hatchery_controller.domain.layout import Layout
from hatchery_controller.supervisor import Pace, Supervisor, Tools
from machine_under_test import make_bundle


def now():
    return Moment(time.time_ns() // 1_000_000, time.monotonic())


class FakeGateway:
    pid = 4242

    def __init__(self, journal):
        self.journal = journal
        self.over = asyncio.get_running_loop().create_future()

    async def wait(self):
        return await asyncio.shield(self.over)

    def terminate(self):
        self.journal.append("terminate")
        if not self.over.done():
            self.over.set_result(0)

    def kill(self):
        self.journal.append("kill")


class World:
    """Every port at once."""

    def __init__(self, *, full_at=None, error=errno.ENOSPC):
        self.journal = []
        self.lines = []
        self.full_at = full_at
        self.error = error

    def start(self, command, environment, on_line):
        self.journal.append("start")
        return FakeGateway(self.journal)

    async def port_is_free(self, port):
        return True

    def prepare(self, layout, uid, gid):
        self._disk("prepare")

    def write_config(self, layout, config, uid, gid):
        self._disk("write_config")

    def record(self, layout, machine_id, gateway_pid):
        self._disk("record")

    def version_of(self, openclaw):
        return "1.2.3"

    async def health(self, port):
        return Probe(live=True, ready=True)

    async def suspend(self, bundle, timeout):
        self.journal.append("suspend")
        return "ready"

    def write(self, source, line):
        self.lines.append(line)

    def redacted(self, text):
        return text

    def _disk(self, step):
        if self.full_at == step:
            raise OSError(self.error, os.strerror(self.error))


def supervise(world):
    board = Board(Ladder(Limits(), now()))
    tools = Tools(launcher=world, disk=world, health=world.health, suspend=world.suspend, log=world, clock=now)
    bundle = parse_bundle(json.dumps(make_bundle(18701)).encode())
    supervisor = Supervisor(bundle, Layout(Path("/nowhere")), board=board, tools=tools, pace=Pace(probe_starting=0.01))
    return supervisor, board


async def reach(board, phase):
    async with asyncio.timeout(5):
        while board.state.phase is not phase:
            await board.wait_beyond(board.state.revision, 5)


async def test_suspend_comes_before_the_signal():
    world = World()
    supervisor, board = supervise(world)
    running = asyncio.ensure_future(supervisor.run())
    await reach(board, Phase.READY)
    assert board.state.gateway.version == "1.2.3"
    supervisor.stop(None)
    assert board.state.phase is Phase.STOPPING
    await running
    assert world.journal == ["start", "suspend", "terminate"]
    assert board.state.phase is Phase.STOPPED


async def test_a_restart_suspends_too_and_starts_again():
    world = World()
    supervisor, board = supervise(world)
    running = asyncio.ensure_future(supervisor.run())
    await reach(board, Phase.READY)
    assert supervisor.restart("why not")
    async with asyncio.timeout(5):
        while board.state.gateway.restarts != 1:
            await board.wait_beyond(board.state.revision, 1)
    await reach(board, Phase.READY)
    supervisor.stop(0)
    await running
    assert world.journal[:4] == ["start", "suspend", "terminate", "start"]


@pytest.mark.parametrize("step", ["prepare", "write_config"])
@pytest.mark.parametrize(
    ("error", "reason"),
    [(errno.ENOSPC, "storage_full"), (errno.EDQUOT, "storage_full"), (errno.EROFS, "storage_unwritable")],
)
async def test_a_sick_disk_is_named_and_can_be_tried_again(step, error, reason):
    world = World(full_at=step, error=error)
    supervisor, board = supervise(world)
    running = asyncio.ensure_future(supervisor.run())
    await reach(board, Phase.FAILED)
    assert board.state.reason == reason
    assert world.journal == []
    world.full_at = None
    supervisor.restart("space was made")
    await reach(board, Phase.READY)
    supervisor.stop(0)
    await running


async def test_a_disk_that_fills_after_the_start_does_not_end_the_gateway():
    world = World(full_at="record")
    supervisor, board = supervise(world)
    running = asyncio.ensure_future(supervisor.run())
    await reach(board, Phase.READY)
    assert any("cannot record" in line for line in world.lines)
    supervisor.stop(None)
    await running


async def test_a_stop_before_anything_started():
    world = World()
    supervisor, board = supervise(world)
    supervisor.stop(None)
    await supervisor.run()
    assert world.journal == []
    assert board.state.phase is Phase.STOPPED
