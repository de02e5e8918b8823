"""The process driver with real controllers and the stand-in gateway."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import socket
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from driver_suite import DriverConformance, ref, spec, started
from hatchery_provisioner.adapters.process import identity
from hatchery_provisioner.domain.errors import DriverPermanent
from hatchery_provisioner.domain.observations import Phase
from hatchery_provisioner.ports import ControllerState
from process_rig import MemoryLeases, ProcessRig

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


class TestProcessDriver(DriverConformance):
    """All of the suite."""


async def phase(rig: ProcessRig, wanted: str, machine: str = "mch_one", limit_s: float = 15) -> ControllerState:
    """Follow the controller until it says so."""
    seen = await rig.driver.observe(ref(machine))
    since: int | None = None
    async with asyncio.timeout(limit_s):
        while True:
            state = await rig.controllers.state(seen.controller or "", machine, since=since, wait_s=5)
            if state is None:
                await asyncio.sleep(0.05)
                continue
            if state.phase == wanted:
                return state
            since = state.revision


async def test_nothing_secret_is_in_sight(rig: ProcessRig) -> None:
    await started(rig)
    await phase(rig, "ready")
    labels = rig.driver._directory("ins_one").labels()
    assert labels is not None
    assert labels.pid is not None
    controller = psutil.Process(labels.pid)
    gateways = [psutil.Process(pid) for pid in identity.stragglers(rig.places.machines / "ins_one")]
    assert gateways
    secrets = rig.secrets("mch_one")
    for process in (controller, *gateways):
        seen = " ".join((*process.cmdline(), *process.environ().values()))
        assert secrets.service_token not in seen
        assert secrets.user_header not in seen


GATEWAY_SCRIPT = """
mkdir -p /tmp/openclaw-state-locks-$(id -u)
touch /tmp/openclaw-state-locks-$(id -u)/state-lifecycle.00000000.lock.sqlite
id -u > "$HOME/uid"
exec sleep 60
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give users of their own")
async def test_a_user_of_its_own() -> None:
    """A script stands in for the gateway: the test's own Python may lie where other users cannot pass."""
    rig = ProcessRig(leases=MemoryLeases(separate=True))
    script = rig.root / "gateway.sh"
    script.write_text(GATEWAY_SCRIPT)
    script.chmod(0o755)
    rig.places = replace(rig.places, node=Path("/bin/sh"), openclaw=script)
    rig.driver = rig.reborn()
    try:
        await started(rig)
        lease = await rig.leases.find("ins_one")
        assert lease is not None
        told = rig.places.machines / "ins_one" / "home" / "uid"
        async with asyncio.timeout(15):
            while not told.exists() or not told.read_text():  # noqa: ASYNC110 - another process sets no event
                await asyncio.sleep(0.05)
        assert told.read_text().strip() == str(lease.uid)
        (gateway,) = [psutil.Process(pid) for pid in identity.stragglers(rig.places.machines / "ins_one")]
        assert gateway.uids().real == lease.uid
        result = await rig.driver.exec(ref(), ["id", "-u"], timeout_s=5)
        assert (result.exit_code, result.output.strip()) == (0, str(lease.uid))
        await rig.driver.delete(ref())
        await rig.driver.delete_storage("ins_one")
        assert not Path(f"/tmp/openclaw-state-locks-{lease.uid}").exists()
    finally:
        script.unlink()
        await rig.close()


async def test_a_controller_that_dies_hard_leaves_nothing_running(rig: ProcessRig) -> None:
    first = await started(rig)
    await phase(rig, "ready")
    labels = rig.driver._directory("ins_one").labels()
    assert labels is not None
    assert labels.pid is not None
    assert labels.started_ticks is not None
    os.kill(labels.pid, signal.SIGKILL)
    assert await identity.wait_gone(labels.pid, labels.started_ticks, 5)
    assert (await rig.driver.observe(ref())).phase is Phase.HEADLESS, "its gateway lives on"
    assert [one.running for one in await rig.driver.list_owned()] == [True]
    await rig.reborn().stop(ref(), grace_s=5)
    assert (await rig.driver.observe(ref())).phase is Phase.STOPPED
    assert not identity.stragglers(rig.places.machines / "ins_one")
    await rig.driver.start(ref(), rig.secrets("mch_one"))
    assert (await rig.driver.observe(ref())).boot_id != first.boot_id
    await phase(rig, "ready")
    await rig.driver.stop(ref(), grace_s=5)
    assert not identity.stragglers(rig.places.machines / "ins_one")


async def test_a_pid_alone_is_nobody(rig: ProcessRig) -> None:
    await rig.driver.ensure(spec())
    directory = rig.driver._directory("ins_one")
    labels = directory.labels()
    assert labels is not None
    directory.write_labels(type(labels)(**{**labels.__dict__, "pid": os.getpid(), "started_ticks": 1}))
    assert (await rig.driver.observe(ref())).phase is Phase.STOPPED
    await rig.driver.delete(ref())


async def test_a_start_whose_pid_was_never_stored_is_adopted(rig: ProcessRig) -> None:
    first = await started(rig)
    directory = rig.driver._directory("ins_one")
    labels = directory.labels()
    assert labels is not None
    directory.write_labels(type(labels)(**{**labels.__dict__, "pid": None, "started_ticks": None}))
    other = rig.reborn()
    assert (await other.observe(ref())).boot_id == first.boot_id
    await other.start(ref(), rig.secrets("mch_one"))
    assert len(list(identity.controllers(rig.places.machines))) == 1


@pytest.mark.skipif(os.getuid() != 0, reason="needs another user")
async def test_a_tenant_cannot_pass_for_the_controller_of_another(rig: ProcessRig) -> None:
    await rig.driver.ensure(spec())
    root = rig.driver._directory("ins_one").root
    words = ["python", "-m", "hatchery_controller", "--boot-fd", "3", "--port", "1", "--root", str(root)]
    command = ["bash", "-c", "read -r _; :", *words]
    impostor = subprocess.Popen(command, stdin=subprocess.PIPE, user=64990, group=64990, extra_groups=[])
    try:
        assert "hatchery_controller" in psutil.Process(impostor.pid).cmdline()
        assert list(identity.controllers(root.parent)) == []
        assert (await rig.driver.observe(ref())).phase is Phase.STOPPED
    finally:
        impostor.kill()
        impostor.communicate()


@pytest.mark.skipif(os.getuid() != 0, reason="needs another user")
async def test_what_a_tenant_left_running_ends_with_its_machine() -> None:
    rig = ProcessRig(leases=MemoryLeases(separate=True))
    try:
        await rig.driver.ensure(spec())
        lease = await rig.leases.find("ins_one")
        assert lease is not None
        assert lease.uid is not None
        hidden = subprocess.Popen(
            ["sleep", "60"], env={}, start_new_session=True, user=lease.uid, group=lease.uid, extra_groups=[]
        )
        assert identity.abandoned(lease.uid) == [hidden.pid]
        await rig.driver.stop(ref(), grace_s=0.0)
        assert await asyncio.to_thread(hidden.wait, 5) == -signal.SIGKILL
    finally:
        await rig.close()


async def test_storage_goes_with_a_controller_that_no_labels_name(rig: ProcessRig) -> None:
    await started(rig)
    seen = rig.driver._directory("ins_one").labels()
    assert seen is not None
    assert seen.pid is not None
    rig.driver._directory("ins_one").forget_machine()
    await rig.driver.delete_storage("ins_one")
    assert identity.started_ticks(seen.pid) is None
    assert not rig.driver._directory("ins_one").root.exists()


async def test_a_taken_port_is_put_aside(rig: ProcessRig) -> None:
    placement = await rig.driver.ensure(spec())
    port = placement.state["port"]
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", port))
        stranger.listen()
        moved = await rig.driver.start(ref(), rig.secrets("mch_one"))
    assert moved.state["port"] != port
    assert isinstance(rig.leases, MemoryLeases)
    assert rig.leases.moved == [port]
    await phase(rig, "ready")


async def test_not_installed_and_disk_full_are_named(rig: ProcessRig) -> None:
    from hatchery_common.clock import SystemClock
    from hatchery_provisioner.adapters.process import ProcessDriver

    def driver(**changes: object) -> ProcessDriver:
        places = replace(rig.places, **changes)  # type: ignore[arg-type]
        return ProcessDriver(places, rig.leases, rig.controllers, SystemClock())

    with pytest.raises(DriverPermanent) as missing:
        await driver(openclaw=Path("/nowhere/openclaw.mjs")).prepare_image()
    assert missing.value.reason == "openclaw_not_installed"
    with pytest.raises(DriverPermanent) as full:
        await driver(min_free_bytes=2**60).ensure(spec())
    assert full.value.reason == "disk_full"


async def test_delete_leaves_nothing_anywhere(rig: ProcessRig) -> None:
    await started(rig)
    await phase(rig, "ready")
    lease = await rig.leases.find("ins_one")
    assert lease is not None
    locks = Path(f"/tmp/openclaw-state-locks-{os.getuid()}")
    database = (rig.places.machines / "ins_one" / "state" / "state" / "openclaw.sqlite").resolve()
    name = hashlib.sha256(str(database).encode()).hexdigest()[:8]
    for family in ("gateway-lifecycle", "state-lifecycle", "state-handles"):
        (locks / f"{family}.{name}.lock.sqlite").touch()
    await rig.driver.delete(ref())
    await rig.driver.delete_storage("ins_one")
    assert not (rig.places.machines / "ins_one").exists()
    assert not list(locks.glob(f"*.{name}.lock.sqlite"))
    assert await rig.leases.find("ins_one") is None


async def test_rejected_configuration_is_told_by_the_controller() -> None:
    rig = ProcessRig(FAKE_GATEWAY_EXIT="78")
    try:
        await started(rig)
        state = await phase(rig, "failed")
        assert state.reason == "config_rejected"
    finally:
        await rig.close()


async def test_all_machines_stop_at_once_and_can_start_again(rig: ProcessRig) -> None:
    one = await started(rig)
    await started(rig, "mch_other", instance="ins_other")
    await rig.driver.stop_all(grace_s=5)
    assert (await rig.driver.observe(ref())).phase is Phase.STOPPED
    assert (await rig.driver.observe(ref("mch_other", "ins_other"))).phase is Phase.STOPPED
    again = await rig.reborn().start(ref(), rig.secrets("mch_one"))
    assert again.endpoint == one.endpoint


@pytest.mark.skipif(os.getuid() != 0, reason="mounting needs root")
async def test_a_full_disk_is_named_and_delete_still_works() -> None:
    root = Path(tempfile.mkdtemp(prefix="hatchery-small-"))
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(root)], check=False)
    if mounted.returncode != 0:
        root.rmdir()
        pytest.skip("mounting is not permitted here")
    try:
        rig = ProcessRig(root=root)
        await rig.driver.ensure(spec())
        with (root / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError, match="No space"):
            while True:
                filler.write(b"x" * 65536)
        with pytest.raises(DriverPermanent) as full:
            await rig.driver.start(ref(), rig.secrets("mch_one"))
        assert full.value.reason == "disk_full"
        await rig.driver.delete(ref())
        await rig.driver.delete_storage("ins_one")
        (root / "filler").unlink()
        await rig.controllers.close()
        (root / "machines").rmdir()
    finally:
        subprocess.run(["umount", str(root)], check=True)
        root.rmdir()
