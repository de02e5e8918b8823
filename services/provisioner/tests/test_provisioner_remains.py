"""What a tenant's user left in places that all users of the host share goes with its storage."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from driver_suite import spec
from hatchery_provisioner.adapters.process import remains
from process_rig import MemoryLeases, ProcessRig

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can give users of their own")
UID, OTHER = 64980, 64981


@pytest.fixture
async def rig() -> AsyncGenerator[ProcessRig]:
    rig = ProcessRig(leases=MemoryLeases(separate=True))
    try:
        yield rig
    finally:
        await rig.close()


def put(path: Path, uid: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("secret")
    os.chown(path, uid, uid)
    return path


def test_all_that_is_the_users_goes_and_nothing_else(tmp_path: Path) -> None:
    shared, outside = tmp_path / "shared", put(tmp_path / "outside", OTHER)
    mine, tree = put(shared / "mine", UID), shared / "tree"
    put(tree / "deep" / "file", OTHER)
    os.chown(tree, UID, UID)
    (shared / "link").symlink_to(outside)
    os.chown(shared / "link", UID, UID, follow_symlinks=False)
    open_to_all, closed = shared / "open", shared / "closed"
    inside, hidden = put(open_to_all / "more" / "inside", UID), put(closed / "hidden", UID)
    for path in (open_to_all, open_to_all / "more"):
        path.chmod(0o1777)
    (shared / "way").symlink_to(tmp_path)
    kept = put(shared / "kept", OTHER)
    remains.remove_of(UID, [shared, tmp_path / "none"])
    assert [path.exists() for path in (mine, tree, inside)] == [False] * 3
    assert not (shared / "link").is_symlink()
    assert [path.exists() for path in (outside, kept, hidden)] == [True] * 3


async def test_they_go_with_the_storage(rig: ProcessRig) -> None:
    await rig.driver.ensure(spec())
    lease = await rig.leases.find("ins_one")
    assert lease is not None
    assert lease.uid is not None
    left = [Path(place) / f"hatchery-left-{lease.uid}" for place in ("/tmp", "/var/tmp", "/dev/shm")]
    command = ["touch", *(str(path) for path in left if path.parent.is_dir())]
    subprocess.run(command, check=True, user=lease.uid, group=lease.uid, extra_groups=[])
    assert any(path.exists() for path in left)
    await rig.driver.delete_storage("ins_one")
    assert not any(path.exists() for path in left)
