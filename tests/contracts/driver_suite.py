"""The conformance suite of machine drivers: every driver passes it, whatever its machines are made of.

A test module gives a fixture `rig` and derives its class from `DriverConformance`.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

import pytest
from hatchery_provisioner.domain.errors import DriverError, DriverPermanent, DriverTransient
from hatchery_provisioner.domain.observations import Observation, Phase
from hatchery_provisioner.ports import BootSecrets, MachineDriver, MachineRef, MachineSpec


class Rig(Protocol):
    """A driver in a world of its own."""

    driver: MachineDriver

    def reborn(self) -> MachineDriver:
        """A driver as another process would have it, over the same world."""
        ...

    def secrets(self, machine_id: str) -> BootSecrets: ...


def spec(
    machine: str = "mch_one", generation: int = 1, *, instance: str = "ins_one", used: bool = False
) -> MachineSpec:
    """What a test wants."""
    return MachineSpec(instance, "tenant-a", machine, generation, epoch=1, operation_id="op_1", expects_storage=used)


def ref(machine: str = "mch_one", instance: str = "ins_one") -> MachineRef:
    """A machine whose driver state was lost: labels alone must do."""
    return MachineRef(instance, machine)


async def started(rig: Rig, machine: str = "mch_one", generation: int = 1, instance: str = "ins_one") -> Observation:
    """A running machine."""
    await rig.driver.ensure(spec(machine, generation, instance=instance))
    await rig.driver.start(ref(machine, instance), rig.secrets(machine))
    seen = await rig.driver.observe(ref(machine, instance))
    assert seen.phase is Phase.RUNNING
    return seen


async def machines(driver: MachineDriver) -> list[str]:
    """The ids of all machines with our labels."""
    return [one.machine_id for one in await driver.list_owned() if one.machine_id is not None]


class DriverConformance:
    """One behaviour a test."""

    async def test_image_has_a_version(self, rig: Rig) -> None:
        assert await rig.driver.prepare_image()

    async def test_life_of_a_machine(self, rig: Rig) -> None:
        assert (await rig.driver.observe(ref())).phase is Phase.ABSENT
        placement = await rig.driver.ensure(spec())
        assert (await rig.driver.observe(ref())).phase is Phase.STOPPED
        assert placement.endpoint
        placement = await rig.driver.start(ref(), rig.secrets("mch_one"))
        seen = await rig.driver.observe(ref())
        assert seen.phase is Phase.RUNNING
        assert seen.boot_id
        assert (seen.endpoint, seen.controller) == (placement.endpoint, placement.controller)
        users = (placement.endpoint_uid, placement.controller_uid)
        assert (seen.endpoint_uid, seen.controller_uid) == users
        await rig.driver.stop(ref(), grace_s=5)
        assert (await rig.driver.observe(ref())).phase is Phase.STOPPED
        await rig.driver.delete(ref())
        assert (await rig.driver.observe(ref())).phase is Phase.ABSENT
        await rig.driver.delete_storage("ins_one")
        assert not await rig.driver.list_owned()

    async def test_creating_twice_makes_one(self, rig: Rig) -> None:
        first, second = await rig.driver.ensure(spec()), await rig.driver.ensure(spec())
        assert (first.endpoint, first.controller) == (second.endpoint, second.controller)
        assert await machines(rig.driver) == ["mch_one"]

    async def test_starting_twice_is_one_boot(self, rig: Rig) -> None:
        first = await started(rig)
        await rig.driver.start(ref(), rig.secrets("mch_one"))
        assert (await rig.driver.observe(ref())).boot_id == first.boot_id

    async def test_another_start_is_another_boot(self, rig: Rig) -> None:
        first = await started(rig)
        await rig.driver.stop(ref(), grace_s=5)
        assert (await started(rig)).boot_id != first.boot_id

    async def test_a_boot_keeps_its_id(self, rig: Rig) -> None:
        first = await started(rig)
        for _ in range(3):
            assert (await rig.driver.observe(ref())).boot_id == first.boot_id

    @pytest.mark.parametrize("state", ["absent", "created", "running", "stopped"])
    @pytest.mark.parametrize("verb", ["stop", "delete"])
    async def test_stop_and_delete_from_every_state_twice(self, rig: Rig, verb: str, state: str) -> None:
        if state != "absent":
            await rig.driver.ensure(spec())
        if state in ("running", "stopped"):
            await started(rig)
        if state == "stopped":
            await rig.driver.stop(ref(), grace_s=5)
        for _ in range(2):
            await (rig.driver.stop(ref(), grace_s=5) if verb == "stop" else rig.driver.delete(ref()))
        seen = await rig.driver.observe(ref())
        gone = verb == "delete" or state == "absent"
        assert seen.phase is (Phase.ABSENT if gone else Phase.STOPPED)

    async def test_storage_outlives_machines(self, rig: Rig) -> None:
        await started(rig)
        await rig.driver.delete(ref())
        await rig.driver.ensure(spec("mch_two", 2, used=True))
        assert await machines(rig.driver) == ["mch_two"]

    async def test_used_storage_is_never_replaced_by_an_empty_one(self, rig: Rig) -> None:
        with pytest.raises(DriverPermanent) as refused:
            await rig.driver.ensure(spec(used=True))
        assert refused.value.reason == "storage_missing"
        assert not await rig.driver.list_owned()

    async def test_a_stale_generation_loses(self, rig: Rig) -> None:
        await rig.driver.ensure(spec("mch_two", 2))
        with pytest.raises(DriverPermanent):
            await rig.driver.ensure(spec("mch_one", 1))
        assert await machines(rig.driver) == ["mch_two"]

    async def test_a_second_machine_waits_for_the_first(self, rig: Rig) -> None:
        first = await started(rig)
        with pytest.raises(DriverTransient):
            await rig.driver.ensure(spec("mch_two", 2))
        assert (await rig.driver.observe(ref())).boot_id == first.boot_id

    async def test_starting_what_is_not_there_creates_nothing(self, rig: Rig) -> None:
        with pytest.raises(DriverError):
            await rig.driver.start(ref(), rig.secrets("mch_one"))
        assert not await machines(rig.driver)

    async def test_another_process_adopts_by_labels(self, rig: Rig) -> None:
        first = await started(rig)
        other = rig.reborn()
        seen = await other.observe(ref())
        assert (seen.phase, seen.boot_id) == (Phase.RUNNING, first.boot_id)
        await other.start(ref(), rig.secrets("mch_one"))
        assert (await other.observe(ref())).boot_id == first.boot_id
        await other.stop(ref(), grace_s=5)
        assert (await other.observe(ref())).phase is Phase.STOPPED

    async def test_instances_are_apart(self, rig: Rig) -> None:
        one = await started(rig)
        two = await started(rig, "mch_other", instance="ins_other")
        assert one.endpoint != two.endpoint
        await rig.driver.delete(ref())
        await rig.driver.delete_storage("ins_one")
        assert (await rig.driver.observe(ref("mch_other", "ins_other"))).boot_id == two.boot_id
        owned = [(one.instance_id, one.machine_id, one.running) for one in await rig.driver.list_owned()]
        assert owned == [("ins_other", "mch_other", True)]

    async def test_storage_is_removed_once_and_stays_removed(self, rig: Rig) -> None:
        await rig.driver.ensure(spec())
        await rig.driver.delete(ref())
        for _ in range(2):
            await rig.driver.delete_storage("ins_one")
        assert not await rig.driver.list_owned()

    async def test_logs_of_anything_are_lines(self, rig: Rig) -> None:
        assert isinstance(await rig.driver.logs(ref(), lines=5), tuple)

    async def test_concurrent_starts_are_one_boot(self, rig: Rig) -> None:
        await rig.driver.ensure(spec())
        await asyncio.gather(*(rig.driver.start(ref(), rig.secrets("mch_one")) for _ in range(3)))
        boots: set[str | None] = set()
        for _ in range(20):  # a second one would give itself away by its end
            seen = await rig.driver.observe(ref())
            assert seen.phase is Phase.RUNNING
            boots.add(seen.boot_id)
            await asyncio.sleep(0.05)
        await asyncio.gather(*(rig.driver.start(ref(), rig.secrets("mch_one")) for _ in range(3)))
        assert boots == {(await rig.driver.observe(ref())).boot_id}
