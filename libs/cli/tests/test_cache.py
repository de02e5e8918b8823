"""The shared cache: whole or not at all, redone when damaged, one builder at a time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hatchery_cli.embedded import openclaw
from hatchery_cli.embedded.cache import install_once
from hatchery_cli.embedded.node import ensure_node
from hatchery_cli.errors import DiskFull, InstallFailed, NpmUnreachable


@pytest.fixture
def root(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HATCHERY_CACHE", str(place / "cache"))
    return place / "cache"


class Builder:
    """Builds an entry of one file and counts how often."""

    def __init__(self, text: str = "content") -> None:
        self.count = 0
        self.text = text

    def __call__(self, place: Path) -> None:
        self.count += 1
        (place / "key").write_text(self.text)


def install(builder: Builder, fingerprint: str = "one") -> Path:
    return install_once("thing", fingerprint, ["key"], builder, room_mib=1)


def test_built_once_and_open_to_others(root: Path) -> None:
    builder = Builder()
    assert install(builder) == install(builder) == root / "thing"
    assert builder.count == 1
    assert (root / "thing").stat().st_mode & 0o777 == 0o755


def test_redone_when_damaged_or_from_another_source(root: Path) -> None:
    builder = Builder()
    (install(builder) / "key").write_text("cut")
    install(builder)
    assert (root / "thing/key").read_text() == "content"
    install(builder, "two")
    assert builder.count == 3


def test_failed_build_leaves_nothing(root: Path) -> None:
    def broken(place: Path) -> None:
        (place / "half").write_text("")
        raise InstallFailed("no")

    with pytest.raises(InstallFailed):
        install_once("thing", "one", ["key"], broken, room_mib=1)
    with pytest.raises(InstallFailed, match="lacks key"):
        install_once("thing", "one", ["key"], lambda place: None, room_mib=1)
    assert [path.name for path in root.iterdir()] == [".thing.lock"]


def test_leftovers_of_a_killed_build_are_removed(root: Path) -> None:
    (root / ".thing.dead").mkdir(parents=True)
    root.chmod(0o755)
    install(Builder())
    assert not (root / ".thing.dead").exists()


def test_concurrent_installs_build_once(root: Path) -> None:
    builder = Builder()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: install(builder), range(8)))
    assert builder.count == 1


def test_node_is_one_that_every_user_may_run(root: Path) -> None:
    path = ensure_node()
    assert path.is_relative_to(root)
    assert path.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize(
    ("output", "kind"),
    [
        ("npm error code ENOTFOUND\nnpm error network request failed", NpmUnreachable),
        ("npm error code ECONNREFUSED", NpmUnreachable),
        ("npm error code E403", NpmUnreachable),
        ("npm error code ENOSPC", DiskFull),
        ("npm error code EINTEGRITY sha512-x", InstallFailed),
        ("npm error something else", InstallFailed),
    ],
)
def test_npm_errors_are_typed_and_carry_a_remedy(output: str, kind: type[Exception]) -> None:
    error = openclaw.failure(output)
    assert type(error) is kind
    assert error.hint


def test_lock_names_no_host_and_one_version() -> None:
    text = (openclaw.LOCK / "package-lock.json").read_text()
    assert '"resolved"' not in text
    assert f'"openclaw": "{openclaw.version()}"' in text
