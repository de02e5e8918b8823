"""What a tenant's user left in places that all users of the host share goes with its storage."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest
from driver_suite import spec
from hatchery_provisioner.adapters.process import remains
from hatchery_provisioner.adapters.process.directory import InstanceDirectory
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


def refusing(real: Callable[..., Any], refused: str) -> Callable[..., Any]:
    """The call as the operating system makes it where even root is refused one name, as with a user's own mount."""

    def call(path: object, *others: Any, **options: Any) -> Any:
        if path == refused:
            raise PermissionError(13, "Permission denied")
        return real(path, *others, **options)

    return call


def test_a_strangers_mount_hinders_nobodys_removal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, open_to_all = put(tmp_path / "mine", UID), tmp_path / "open"
    for path in (tmp_path / "mount", open_to_all / "mount"):
        put(path, OTHER)
    open_to_all.chmod(0o1777)
    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", refusing(os.stat, "mount"))
        remains.remove_of(UID, [tmp_path])
    assert not mine.exists()


def test_what_cannot_be_removed_elsewhere_keeps_no_data_of_the_tenant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = put(Path("/tmp") / f"hatchery-kept-{UID}", UID)
    directory = InstanceDirectory(tmp_path / "ins_1")
    directory.create()
    with monkeypatch.context() as patched, pytest.raises(PermissionError):
        patched.setattr(os, "unlink", refusing(os.unlink, left.name))
        directory.remove(UID)
    assert not directory.root.exists()
    directory.remove(UID)
    assert not left.exists()
