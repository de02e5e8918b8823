"""Which stack an operator's command means: a directory's, or the one that the environment names."""

from __future__ import annotations

import pytest
from hatchery_cli.embedded.layout import Choices, Layout
from hatchery_cli.errors import NotRunning
from hatchery_cli.target import find_target
from hatchery_common.errors import SetupError
from hatchery_common.settings import NatsSettings

KEY = "ab" * 32
URL = "postgresql://boss:pw@db:5432/hatchery"


def test_a_directory_gives_everything(layout: Layout) -> None:
    layout.remember(Choices(port=9100, nats_url="nats://bus:4222"))
    key = layout.root_key()
    target = find_target(layout.root)
    assert target.root_key == key
    assert target.nats_url == "nats://bus:4222"
    assert "@127.0.0.1:9121/hatchery" in target.database_url


def test_the_environment_alone_is_enough(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HATCHERY_DIR", str(layout.root))
    monkeypatch.setenv("HATCHERY_ROOT_KEY", KEY)
    target = find_target(None, database=URL, bus="nats://bus:4222")
    assert (target.root_key, target.database_url, target.layout) == (bytes.fromhex(KEY), URL, None)


def test_a_stack_of_another_key_is_not_meant(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    own = layout.root_key().hex()
    monkeypatch.setenv("HATCHERY_DIR", str(layout.root))
    monkeypatch.setenv("HATCHERY_ROOT_KEY", KEY)
    assert find_target(None, database=URL).layout is None
    monkeypatch.setenv("HATCHERY_ROOT_KEY", own)
    assert find_target(None).layout == layout


def test_a_named_directory_without_a_stack_is_not_replaced_by_the_environment(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HATCHERY_ROOT_KEY", KEY)
    for named in (layout.root, layout.root / "mistyped"):
        with pytest.raises(NotRunning, match="no stack was ever started"):
            find_target(named, database=URL)


def test_what_is_missing_is_named(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HATCHERY_DIR", str(layout.root / "none"))
    monkeypatch.delenv("HATCHERY_ROOT_KEY", raising=False)
    with pytest.raises(NotRunning, match="HATCHERY_ROOT_KEY is not set"):
        find_target(None)
    monkeypatch.setenv("HATCHERY_ROOT_KEY", KEY)
    with pytest.raises(SetupError, match="no database is named"):
        find_target(None)
    monkeypatch.setenv("HATCHERY_ROOT_KEY", "nonsense")
    with pytest.raises(SetupError, match="not hex"):
        find_target(None, database=URL)


def test_where_no_bus_is_named_it_is_the_one_that_services_ask(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HATCHERY_DIR", str(layout.root / "none"))
    monkeypatch.setenv("HATCHERY_ROOT_KEY", KEY)
    assert find_target(None, database=URL).nats_url == NatsSettings.model_fields["url"].default
