"""Trees that tenants made go whole, however they were made."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hatchery_provisioner.adapters.process.directory import InstanceDirectory
from hatchery_provisioner.adapters.process.removal import remove


def nest(top: Path, depth: int) -> None:
    """So many directories in each other, a file in each: deeper than a path may be long."""
    top.mkdir(parents=True, exist_ok=True)
    here = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
        os.mkdir("directory", dir_fd=here)
        below = os.open("directory", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)


def test_an_instance_with_a_very_deep_tree_goes(tmp_path: Path) -> None:
    directory = InstanceDirectory(tmp_path / "ins_1")
    directory.create()
    nest(directory.root / "state", 3000)
    nest(directory.root / "home", 1500)
    directory.remove(None)
    assert not directory.root.exists()


def test_a_wide_tree_goes_and_what_its_links_lead_to_stays(tmp_path: Path) -> None:
    tree, outside = tmp_path / "tree", tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    for name in ("a", "b", "c"):
        nest(tree / name, 3)
        nest(tree / name / "more", 2)
        (tree / name / "link").symlink_to(outside)
    (tree / "nowhere").symlink_to(tmp_path / "none")
    remove(tree)
    assert not tree.exists()
    (tmp_path / "link").symlink_to(outside)
    remove("link", dir_fd=os.open(tmp_path, os.O_RDONLY))
    remove(tmp_path / "none")
    assert [path.name for path in tmp_path.iterdir()] == ["outside"]
    assert (outside / "kept").exists()


def test_it_never_goes_on_where_a_directory_was_moved_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of the tenant may still move directories while they go."""
    nest(tmp_path / "tree", 3)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    real = os.scandir

    def scandir(place: int) -> object:
        deepest = tmp_path / "tree/directory/directory"
        if deepest.exists() and os.fstat(place).st_ino == deepest.stat().st_ino:
            deepest.rename(elsewhere / "directory")
        return real(place)

    with monkeypatch.context() as patched, pytest.raises(OSError, match="moved"):
        patched.setattr(os, "scandir", scandir)
        remove(tmp_path / "tree")
    assert elsewhere.exists()
    remove(tmp_path / "tree")
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]
