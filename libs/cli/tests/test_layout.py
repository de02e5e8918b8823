"""The data directory: root key, remembered choices, checks of places and ports."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hatchery_cli.embedded import places
from hatchery_cli.embedded.layout import Choices, Layout, Ports
from hatchery_cli.embedded.stack import environment
from hatchery_cli.embedded.upping import chosen
from hatchery_cli.errors import DiskFull, PlaceUnusable, PortTaken, StateDamaged


def test_root_key_is_made_once_and_private(layout: Layout) -> None:
    key = layout.root_key()
    assert len(key) == 32
    assert layout.root_key() == key
    assert layout.root_key_file.stat().st_mode & 0o777 == 0o600


def test_another_root_key_is_refused(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    layout.root_key()
    monkeypatch.setenv("HATCHERY_ROOT_KEY", "ab" * 32)
    with pytest.raises(StateDamaged, match="differs"):
        layout.root_key()


def test_damaged_root_key_is_named(layout: Layout) -> None:
    layout.root_key_file.write_text("not hex")
    with pytest.raises(StateDamaged, match="32 bytes"):
        layout.root_key()


@pytest.mark.parametrize(
    "left", ["postgres/PG_VERSION", "nats/jetstream/x", "secrets/api.env", "machines/ins_a/controller.json"]
)
def test_a_root_key_missing_beside_its_data_is_not_made_anew(
    layout: Layout, left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (layout.root / left).parent.mkdir(parents=True, exist_ok=True)
    (layout.root / left).write_text("")
    with pytest.raises(StateDamaged, match=r"root\.key is missing") as caught:
        layout.root_key()
    assert "backup" in (caught.value.hint or "")
    assert not layout.root_key_file.exists()
    monkeypatch.setenv("HATCHERY_ROOT_KEY", "ab" * 32)
    assert layout.root_key().hex() == "ab" * 32


def test_an_empty_root_key_is_damaged(layout: Layout) -> None:
    layout.root_key_file.write_text("\n")
    with pytest.raises(StateDamaged, match="32 bytes"):
        layout.root_key()
    assert layout.root_key_file.read_text() == "\n"


def test_choices_are_remembered(layout: Layout) -> None:
    assert layout.choices() == Choices()
    layout.remember(Choices(port=9100, nats_url="nats://elsewhere:4222"))
    assert layout.choices() == Choices(port=9100, nats_url="nats://elsewhere:4222")


def test_what_is_tried_counts_until_it_is_proven_or_given_up(layout: Layout) -> None:
    layout.remember(Choices(port=9100))
    layout.attempt(Choices(port=9400))
    assert (layout.choices().port, layout.remembered().port) == (9400, 9100)
    layout.end_attempt()
    assert layout.choices().port == 9100
    layout.attempt(Choices(port=9400))
    layout.remember(layout.choices())
    assert (layout.choices().port, layout.remembered().port) == (9400, 9400)
    assert not layout.attempt_file.exists()


def test_an_empty_url_means_our_own_server_again() -> None:
    before = Choices(port=9100, nats_url="nats://elsewhere:4222", database_url="postgresql://elsewhere/hatchery")
    given = {"port": None, "nats_url": None, "database_url": "", "processes": False}
    assert chosen(before, given) == Choices(port=9100, nats_url="nats://elsewhere:4222")


def test_services_go_to_the_bus_that_was_chosen(layout: Layout) -> None:
    given = {"HATCHERY_NATS_URL": "nats://exported:4222", "HATCHERY_API_PORT": "1234"}
    settings = environment(layout, Choices(nats_url="nats://chosen:4222"), given)
    assert settings["HATCHERY_NATS_URL"] == "nats://chosen:4222"
    assert settings["HATCHERY_API_PORT"] == "1234"


def test_secret_directories_are_closed(layout: Layout) -> None:
    for closed in (layout.secrets, layout.nats, layout.logs, layout.run):
        assert closed.stat().st_mode & 0o077 == 0


def test_ports_of_one_stack_do_not_meet() -> None:
    ports = Ports(9000)
    taken = [*ports.of_services().values(), ports.nats, ports.postgres]
    first, last = ports.gateways
    assert len(set(taken)) == len(taken)
    assert all(not first <= port <= last + 100 for port in taken)


def test_taken_port_names_its_holder() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        number = server.getsockname()[1]
        with pytest.raises(PortTaken, match=rf"port {number} \(api\).*pid {os.getpid()}") as caught:
            places.require_ports({"api": number})
    assert "--port" in (caught.value.hint or "")


def test_closed_parent_is_named_with_its_remedy(place: Path) -> None:
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(PlaceUnusable, match="closed to other users") as caught:
        places.require_writable(closed / "data", others=True)
    assert f"chmod o+x {closed}" in (caught.value.hint or "")


def test_full_disk_is_named(place: Path) -> None:
    with pytest.raises(DiskFull, match="MiB free"):
        places.require_room(place, 1 << 40)


def test_a_file_in_the_way_is_a_place_error(place: Path) -> None:
    (place / "file").write_text("")
    with pytest.raises(PlaceUnusable):
        Layout(place / "file" / "data").create()
