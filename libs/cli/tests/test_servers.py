"""The embedded servers, real ones: started, killed, restarted, adopted, stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
from hatchery_cli.embedded import nats, postgres
from hatchery_cli.embedded.layout import Layout
from hatchery_cli.embedded.processes import is_ours, wait_gone
from hatchery_cli.embedded.supervisor import Condition, Part, Supervisor
from hatchery_cli.errors import ServerFailed, StateDamaged


@asynccontextmanager
async def supervised(*parts: Part) -> AsyncGenerator[Supervisor]:
    supervisor = Supervisor(lambda _name: None)
    try:
        for part in parts:
            await supervisor.start(part)
        yield supervisor
    finally:
        await supervisor.stop()


async def eventually(check: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(15):
        while True:
            if await check():
                return
            await asyncio.sleep(0.02)


async def until_restarted(condition: Condition) -> None:
    async def restarted() -> bool:
        return condition.restarts > 0 and condition.state == "ready"

    await eventually(restarted)


def postgres_part(layout: Layout, port: int) -> Part:
    binaries = postgres.ensure_binaries()
    owner = postgres.initialise(binaries, layout.postgres, "secret")
    return postgres.part(binaries, layout.postgres, port, owner, layout.logs / "postgres.log")


async def test_postgres_demands_its_password_and_survives_a_kill(layout: Layout, port: int) -> None:
    async with supervised(postgres_part(layout, port)) as supervisor:
        url = f"postgresql://postgres:secret@127.0.0.1:{port}/postgres"
        connection = await asyncpg.connect(url)
        await connection.execute("CREATE TABLE kept (n int)")
        assert await connection.fetchval("SHOW fsync") == "on"
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(url.replace("secret", "wrong"))
        condition = supervisor.conditions["postgres"]
        assert condition.pid is not None
        os.kill(condition.pid, signal.SIGKILL)
        await until_restarted(condition)
        assert condition.reason == "was killed by SIGKILL"
        again = await asyncpg.connect(url)
        assert await again.fetchval("SELECT count(*) FROM kept") == 0
        await again.close()
        connection.terminate()
    assert not (layout.postgres / "postmaster.pid").exists()


async def test_postgres_left_behind_is_stopped_and_a_lying_pid_file_removed(layout: Layout, port: int) -> None:
    part = postgres_part(layout, port)
    left = subprocess.Popen(part.argv, user=part.uid, group=part.gid, cwd="/", stderr=subprocess.DEVNULL)
    await eventually(lambda: postgres.accepts_queries(port))
    async with supervised(part):
        assert left.wait(5) == 0
    (layout.postgres / "postmaster.pid").write_text(f"{os.getpid()}\n{layout.postgres}\n")
    async with supervised(part):
        assert await postgres.accepts_queries(port)


def test_half_a_cluster_is_refused(layout: Layout) -> None:
    layout.postgres.mkdir()
    (layout.postgres / "something").write_text("")
    with pytest.raises(StateDamaged, match="no PG_VERSION"):
        postgres.initialise(Path("/unused"), layout.postgres, "secret")


async def test_nats_syncs_every_write_and_lets_nobody_in_by_default(layout: Layout, port: int) -> None:
    log = layout.logs / "nats.log"
    config = nats.write_config(layout.nats, port, log)
    assert "sync_interval: always" in config.read_text()
    assert subprocess.run([nats.binary(), "-t", "-c", config], capture_output=True, check=False).returncode == 0
    async with supervised(nats.part(layout.nats, port, log)) as supervisor:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b'CONNECT {"verbose":false}\r\nPING\r\n')
        answer = await asyncio.wait_for(reader.readuntil(b"-ERR"), 5)
        assert b'"auth_required":true' in answer
        writer.close()
        pid = supervisor.conditions["nats"].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until_restarted(supervisor.conditions["nats"])
    assert wait_gone([pid], 5) == []


async def test_nats_reloads_its_users(layout: Layout, port: int) -> None:
    log = layout.logs / "nats.log"
    nats.write_config(layout.nats, port, log)
    async with supervised(nats.part(layout.nats, port, log)):
        assert nats.write_authorization(layout.nats, 'authorization { user: "a", password: "b" }\n')
        assert not nats.write_authorization(layout.nats, 'authorization { user: "a", password: "b" }\n')
        nats.reload(layout.nats)
        await eventually(lambda: _signs_in(port))


async def _signs_in(port: int) -> bool:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b'CONNECT {"verbose":false,"user":"a","pass":"b"}\r\nPING\r\n')
    await reader.readline()
    answer = await reader.readline()
    writer.close()
    return answer.startswith(b"PONG")


async def yes() -> bool:
    return True


async def no() -> bool:
    return False


def python_part(layout: Layout, code: str, **more: object) -> Part:
    settings: dict[str, object] = {"ready": yes, **more}
    return Part("thing", (sys.executable, "-c", code), {}, layout.logs / "thing.log", **settings)  # type: ignore[arg-type]


async def test_a_part_that_ends_at_once_is_explained_by_its_log(layout: Layout) -> None:
    part = python_part(layout, "print('the reason'); raise SystemExit(4)", ready=no)
    with pytest.raises(ServerFailed, match="exit code 4: the reason"):
        await Supervisor(lambda _name: None).start(part)


async def test_a_part_that_never_gets_ready_is_stopped(layout: Layout) -> None:
    supervisor = Supervisor(lambda _name: None)
    part = python_part(layout, "import time; time.sleep(60)", ready=no, ready_within_s=0.3)
    with pytest.raises(ServerFailed, match="did not get ready within"):
        await supervisor.start(part)
    assert supervisor.conditions["thing"].state == "failed"


async def test_a_deaf_part_is_killed_with_its_group(layout: Layout, place: Path) -> None:
    code = (
        "import signal, subprocess, time, pathlib; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        f"child = subprocess.Popen(['sleep', '60']); pathlib.Path({str(place / 'pid')!r}).write_text(str(child.pid));"
        "time.sleep(60)"
    )
    written = place / "pid"

    async def has_written() -> bool:
        return written.exists() and written.read_text() != ""

    async with supervised(python_part(layout, code, ready=has_written, stop_within_s=0.3)):
        child = int(written.read_text())
        assert is_ours(child, ["sleep"])
    assert wait_gone([child], 5) == []


async def test_a_restarted_part_that_only_waits_is_degraded_and_not_killed(layout: Layout) -> None:
    is_ready = asyncio.Event()
    is_ready.set()

    async def ready() -> bool:
        return is_ready.is_set()

    async def why() -> str:
        return "the bus is away"

    part = python_part(layout, "import time; time.sleep(60)", ready=ready, explain=why, ready_within_s=0.3)
    async with supervised(part) as supervisor:
        condition = supervisor.conditions["thing"]
        is_ready.clear()
        assert condition.pid is not None
        os.kill(condition.pid, signal.SIGKILL)

        async def is_degraded() -> bool:
            return condition.state == "degraded"

        await eventually(is_degraded)
        pid = condition.pid
        assert "the bus is away" in (condition.reason or "")
        is_ready.set()
        await until_restarted(condition)
        assert condition.pid == pid
        assert condition.restarts == 1
