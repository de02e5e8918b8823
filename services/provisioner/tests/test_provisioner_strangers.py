"""Another user of the host takes the ports of a machine that is down: no token reaches him, and the machine moves."""

from __future__ import annotations

import asyncio
import os

import pytest
from driver_suite import ref, spec, started
from hatchery_common.clock import SystemClock
from hatchery_common.testing.stranger import POSSIBLE, stranger
from hatchery_provisioner.adapters.process import Lease, ProcessDriver
from hatchery_provisioner.domain.errors import DriverCapacity
from hatchery_provisioner.domain.observations import Phase
from process_rig import MemoryLeases, ProcessRig

_LIMIT_S = 60  # for processes to start or end on a busy host; each wait ends as soon as it may

pytestmark = pytest.mark.skipif(not POSSIBLE, reason="only root can be another user")


async def lease_of(rig: ProcessRig) -> Lease:
    lease = await rig.leases.find("ins_one")
    assert lease is not None
    return lease


async def assert_told_nothing(rig: ProcessRig, lease: Lease) -> None:
    with pytest.raises(DriverCapacity) as taken:
        await rig.controllers.state(lease.controller, "mch_one", since=None, wait_s=0)
    assert taken.value.reason == "port_taken"
    assert str(lease.controller_port) in taken.value.message
    assert not await rig.controllers.stop(lease.controller, "mch_one", deadline_s=1)


async def until_ready(rig: ProcessRig) -> None:
    address = (await lease_of(rig)).controller
    async with asyncio.timeout(_LIMIT_S):
        while True:
            state = await rig.controllers.state(address, "mch_one", since=None, wait_s=0)
            if state is not None and state.phase == "ready":
                return
            await asyncio.sleep(0.05)


async def test_at_the_ports_of_a_stopped_machine(rig: ProcessRig) -> None:
    await started(rig)
    await until_ready(rig)
    await rig.driver.stop(ref(), grace_s=5)
    old = await lease_of(rig)
    with stranger([old.port, old.controller_port]) as he:
        await assert_told_nothing(rig, old)
        assert (await rig.driver.observe(ref())).phase is Phase.STOPPED
        await rig.driver.start(ref(), rig.secrets("mch_one"))
        assert (await lease_of(rig)).port != old.port
        await until_ready(rig)
        assert he.heard() == b""


async def test_in_the_moment_before_a_controller_can_listen(rig: ProcessRig) -> None:
    """The port was free when it was looked at; the controller finds it taken and ends, and the next start moves."""
    await rig.driver.ensure(spec())
    old = await lease_of(rig)
    hasty = ProcessDriver(rig.places, rig.leases, rig.controllers, SystemClock(), is_free=lambda _: True)
    with stranger([old.controller_port]) as he:
        await hasty.start(ref(), rig.secrets("mch_one"))
        await assert_told_nothing(rig, old)
        async with asyncio.timeout(_LIMIT_S):
            while (await rig.driver.observe(ref())).phase is not Phase.STOPPED:  # noqa: ASYNC110 - another process's end
                await asyncio.sleep(0.05)
        await rig.driver.start(ref(), rig.secrets("mch_one"))
        await until_ready(rig)
        assert he.heard() == b""


@pytest.mark.parametrize("separate", [True, False])
async def test_a_placement_names_the_users_that_are_to_be_trusted(separate: bool) -> None:
    rig = ProcessRig(leases=MemoryLeases(separate=separate))
    try:
        placement = await rig.driver.ensure(spec())
        lease = await lease_of(rig)
        assert placement.endpoint_uid == (lease.uid if separate else os.geteuid())
        assert placement.controller_uid == os.geteuid()
    finally:
        await rig.close()
