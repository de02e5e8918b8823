"""The owner lock and its fence on a real Postgres: terms, a frozen owner, what fails while it is held."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

import pytest
import sqlalchemy as sa
from hatchery_common.database import Database
from hatchery_common.errors import DependencyUnavailable, OwnershipLost
from hatchery_common.log import get_logger
from hatchery_common.owner import LeaseLost, OwnerLock, Ownership
from hatchery_common.testing.postgres import scalar


async def test_a_late_write_of_an_old_epoch_is_refused(database: Database) -> None:
    terms: list[int] = []
    elected = asyncio.Event()

    async def loop(ownership: Ownership) -> None:
        terms.append(ownership.epoch)
        elected.set()
        await asyncio.Event().wait()

    for _ in range(2):
        elected.clear()
        task = asyncio.create_task(OwnerLock(database, get_logger("test"), lease_s=2).run([loop]))
        await asyncio.wait_for(elected.wait(), 10)
        task.cancel()
        await asyncio.wait([task])
    assert terms[1] == terms[0] + 1
    with pytest.raises(OwnershipLost):
        async with database.unit_of_work(epoch=terms[0]) as work:
            await work.connection.execute(sa.text("INSERT INTO notes VALUES ('late', 1)"))
    async with database.unit_of_work(epoch=terms[1]) as work:
        await work.connection.execute(sa.text("INSERT INTO notes VALUES ('in time', 1)"))
    assert await scalar(database, "SELECT count(*) FROM notes") == 1


_OWNER = """
import asyncio, sys
from hatchery_common.database import Database
from hatchery_common.log import configure, get_logger
from hatchery_common.owner import OwnerLock
configure()
async def loop(ownership):
    print(f"elected {ownership.epoch}", flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        print(f"lost {ownership.epoch}", flush=True)
asyncio.run(OwnerLock(Database(sys.argv[1], "example"), get_logger("test"), lease_s=2).run([loop]))
"""


async def test_a_frozen_owner_loses_its_lease_and_learns_of_it_on_waking(database: Database) -> None:
    first = subprocess.Popen([sys.executable, "-c", _OWNER, database.url], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None
        line = await asyncio.to_thread(first.stdout.readline)
        epoch = int(line.split()[1])
        elected = asyncio.get_running_loop().create_future()

        async def standby(ownership: Ownership) -> None:
            elected.set_result(ownership.epoch)
            await asyncio.Event().wait()

        task = asyncio.create_task(OwnerLock(database, get_logger("test"), lease_s=2).run([standby]))
        os.kill(first.pid, signal.SIGSTOP)
        assert await asyncio.wait_for(elected, 15) == epoch + 1
        os.kill(first.pid, signal.SIGCONT)
        assert (await asyncio.to_thread(first.stdout.readline)).strip() == f"lost {epoch}"
        task.cancel()
        await asyncio.wait([task])
    finally:
        first.kill()
        first.communicate()


async def test_a_transaction_of_a_frozen_process_does_not_hold_the_owners_row_for_ever(database: Database) -> None:
    assert await scalar(database, "SHOW idle_in_transaction_session_timeout") == "10s"
    with pytest.raises(DependencyUnavailable):
        async with database.unit_of_work() as work:
            await work.connection.execute(sa.text("SET LOCAL idle_in_transaction_session_timeout = '50ms'"))
            await asyncio.sleep(0.5)
            await work.connection.execute(sa.text("SELECT 1"))


async def test_a_lost_lock_and_a_lost_database_at_once_only_stand_again(database: Database) -> None:
    terms: list[int] = []
    again = asyncio.Event()

    async def first(ownership: Ownership) -> None:
        terms.append(ownership.epoch)
        if len(terms) > 1:
            again.set()
            await asyncio.Event().wait()
        raise LeaseLost("the lock")

    async def second(_: Ownership) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            if not again.is_set():
                raise DependencyUnavailable("the database")

    task = asyncio.create_task(OwnerLock(database, get_logger("test"), lease_s=2).run([first, second]))
    await asyncio.wait({task, waiting := asyncio.create_task(again.wait())}, timeout=10)
    assert waiting.done()
    task.cancel()
    await asyncio.wait([task])


async def test_a_late_write_of_a_loop_ends_the_term_and_not_the_service(database: Database) -> None:
    """An owner that was frozen may meet the refusal of its write before it learns that its lock is gone."""
    terms: list[int] = []
    again = asyncio.Event()

    async def loop(ownership: Ownership) -> None:
        terms.append(ownership.epoch)
        if len(terms) > 1:
            again.set()
            await asyncio.Event().wait()
        raise OwnershipLost("epoch 1 is over, 2 rules now")

    task = asyncio.create_task(OwnerLock(database, get_logger("test"), lease_s=2).run([loop]))
    await asyncio.wait({task, waiting := asyncio.create_task(again.wait())}, timeout=10)
    assert waiting.done()
    task.cancel()
    await asyncio.wait([task])


async def test_an_error_of_a_loop_reaches_the_supervisor(database: Database) -> None:
    async def broken(_: Ownership) -> None:
        raise ValueError("a bug")

    with pytest.raises(ExceptionGroup) as raised:
        await asyncio.wait_for(OwnerLock(database, get_logger("test")).run([broken]), 10)
    assert raised.group_contains(ValueError)
