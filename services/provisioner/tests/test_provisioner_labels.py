"""The labels of a machine on this host: what cannot be read is neither here nor gone."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest
from driver_suite import ref, spec, started
from hatchery_provisioner.adapters.process import identity
from hatchery_provisioner.adapters.process.directory import InstanceDirectory, Labels, LabelsBroken
from hatchery_provisioner.adapters.process.sight import gateway
from hatchery_provisioner.domain.errors import DriverTransient
from hatchery_provisioner.domain.observations import Phase
from process_rig import ProcessRig

LABELS = Labels("ins_one", "mch_one", 1, 1, "op_1")


@pytest.fixture
def directory(tmp_path: Path) -> InstanceDirectory:
    found = InstanceDirectory(tmp_path / "ins_one")
    found.create()
    return found


def test_what_a_newer_version_added_is_passed_over(directory: InstanceDirectory) -> None:
    directory.write_labels(LABELS)
    place = directory.root / "machine.json"
    place.write_text(json.dumps({**json.loads(place.read_bytes()), "zone": "north"}))
    assert directory.labels() == LABELS


def test_only_a_missing_file_is_no_machine(directory: InstanceDirectory) -> None:
    assert directory.labels() is None
    assert InstanceDirectory(directory.root / "none").labels() is None
    (directory.root / "machine.json").mkdir()  # stands for any error of the operating system
    with pytest.raises(DriverTransient) as refused:
        directory.labels()
    assert refused.value.reason == "host_refused"
    (directory.root / "controller.json").mkdir()
    with pytest.raises(DriverTransient):
        directory.controller_record()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '"x"'])
def test_broken_labels_are_not_absent(directory: InstanceDirectory, text: str) -> None:
    (directory.root / "machine.json").write_text(text)
    with pytest.raises(LabelsBroken):
        directory.labels()


pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


async def until_its_gateway_runs(rig: ProcessRig) -> None:
    async with asyncio.timeout(30):
        while gateway(InstanceDirectory(rig.places.machines / "ins_one")) is None:  # noqa: ASYNC110 - another process's
            await asyncio.sleep(0.05)


async def test_a_machine_of_broken_labels_is_not_called_absent_and_can_be_ended(rig: ProcessRig) -> None:
    await started(rig)
    (rig.places.machines / "ins_one" / "machine.json").write_text("{")
    for refused in (rig.driver.observe(ref()), rig.driver.ensure(spec())):
        with pytest.raises(LabelsBroken):
            await refused
    assert [one.running for one in await rig.driver.list_owned()] == [True]
    await rig.driver.stop(ref(), grace_s=0.0)
    assert not list(identity.controllers(rig.places.machines))
    assert (await rig.driver.observe(ref())).phase is Phase.STOPPED
    await rig.driver.delete(ref())
    assert (await rig.driver.observe(ref())).phase is Phase.ABSENT


async def test_deletion_ends_what_runs_where_the_directory_was_removed_by_hand(rig: ProcessRig) -> None:
    await started(rig)
    (controller,) = dict(identity.controllers(rig.places.machines)).values()
    shutil.rmtree(rig.places.machines / "ins_one")
    await rig.driver.delete(ref())
    await rig.driver.delete_storage("ins_one")
    assert identity.started_ticks(controller) is None
    assert not identity.stragglers(rig.places.machines / "ins_one")


async def test_a_directory_that_cannot_be_read_hides_no_other_and_what_runs_in_it_is_stopped(rig: ProcessRig) -> None:
    await started(rig)
    await started(rig, "mch_other", instance="ins_other")
    await until_its_gateway_runs(rig)
    root = rig.places.machines / "ins_one"
    (root / "machine.json").unlink()
    (root / "machine.json").mkdir()  # stands for any error of the operating system
    owned = {one.instance_id: (one.machine_id, one.running) for one in await rig.driver.list_owned()}
    assert owned == {"ins_one": (None, True), "ins_other": ("mch_other", True)}
    await rig.driver.stop_all(grace_s=5)
    assert not [one for one in await rig.driver.list_owned() if one.running]
    assert not identity.stragglers(root)
    (root / "machine.json").rmdir()


async def test_of_one_that_cannot_be_told_all_that_is_seen_is_stopped_and_the_rest_with_it(rig: ProcessRig) -> None:
    await started(rig)
    await started(rig, "mch_other", instance="ins_other")
    await until_its_gateway_runs(rig)
    root = rig.places.machines / "ins_one"
    for name in ("machine.json", "controller.json"):
        (root / name).unlink()
        (root / name).mkdir()
    with pytest.raises(DriverTransient, match=r"reading controller\.json"):
        await rig.driver.stop_all(grace_s=5)
    assert not [one for one in await rig.driver.list_owned() if one.running]
    assert not identity.stragglers(root)
    for name in ("machine.json", "controller.json"):
        (root / name).rmdir()
