"""An operator hears where nothing isolates one user's machine from another's."""

from __future__ import annotations

import pytest
from hatchery_cli.doctor import machine
from hatchery_cli.embedded.isolation import missing_isolation
from hatchery_cli.embedded.layout import Choices, Layout
from hatchery_cli.embedded.stack import environment
from hatchery_cli.embedded.state import StateFile
from hatchery_cli.embedded.welcome import welcome
from hatchery_common.settings import load
from hatchery_provisioner.settings import ProvisionerSettings
from rich.console import Console

TRUST = "HATCHERY_PROVISIONER_TRUST_ALL_USERS"
SEPARATE = "HATCHERY_PROVISIONER_SEPARATE_USERS"


@pytest.mark.parametrize("text", ["", "true", "1", "on", "false", "0", "Off", "no", "F"])
@pytest.mark.parametrize("as_root", [True, False])
def test_it_sees_what_the_provisioner_does(layout: Layout, text: str, as_root: bool) -> None:
    settings = environment(layout, Choices(), {SEPARATE: text, TRUST: text})
    read = load(ProvisionerSettings, settings)
    missing = missing_isolation(settings, as_root=as_root)
    assert (missing is None) == (as_root and read.separate_users)
    if missing is not None:
        assert ("trusted with each other's data" in missing) == read.trust_all_users


def test_up_passes_on_that_all_users_are_trusted(layout: Layout) -> None:
    assert TRUST not in environment(layout, Choices(), {})
    assert environment(layout, Choices(trust_all_users=True), {})[TRUST] == "true"
    assert environment(layout, Choices(trust_all_users=True), {TRUST: "false"})[TRUST] == "false"


def test_the_welcome_warns_once(layout: Layout) -> None:
    console = Console(width=200, soft_wrap=True, highlight=False)
    with console.capture() as captured:
        console.print(welcome(layout, Choices(), 1.0, warning="nothing isolates them"))
        console.print(welcome(layout, Choices(), 1.0))
    assert captured.get().count("warning[isolation_none]: nothing isolates them") == 1
    assert captured.get().count("--trust-all-users") == 1


def test_doctor_finds_it_in_what_would_be_started_and_in_what_runs(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SEPARATE, "false")
    found = machine.check_isolation(layout, running=False)
    assert (found.code, found.level) == ("isolation_none", "warning")
    assert "--trust-all-users" in (found.remedy or "")
    StateFile(layout, Choices()).isolation(None)
    assert machine.check_isolation(layout, running=True).level == "ok"
    StateFile(layout, Choices()).isolation("nothing isolates them")
    assert machine.check_isolation(layout, running=True).code == "isolation_none"
