"""Machines that cannot start: the fault has a name and a remedy, delete works, and so does a retry once the cause is gone."""

from __future__ import annotations

import socket
from collections.abc import Callable, Generator

import pytest
from faults import Faults, ended, ends_of, faulty_stack, gateway_pid, gateway_port
from whole_stack import WholeStack, eventually, kill

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
_OWN_TEXT = "Invalid config: gateway.wrong is no key that I know"
FAULTS: dict[str, dict[str, str] | None] = {
    "openclaw_not_installed": None,
    "config_rejected": {"FAKE_GATEWAY_EXIT": "78", "say": _OWN_TEXT},
    "crash_loop": {"FAKE_GATEWAY_EXIT": "1", "say": "the gateway's last words"},
    "start_deadline": {"FAKE_GATEWAY_NEVER_READY": "1"},
}


@pytest.fixture(scope="module")
def faulty() -> Generator[tuple[WholeStack, Faults]]:
    with faulty_stack(HATCHERY_PROVISIONER_START_DEADLINE_S="15") as (stack, faults):
        stack.up()
        yield stack, faults


@pytest.fixture(autouse=True)
def _healed(faulty: tuple[WholeStack, Faults]) -> Generator[None]:
    yield
    faulty[1].heal()


@pytest.mark.parametrize("reason", FAULTS)
def test_a_fault_is_named_and_ends_with_its_cause(
    faulty: tuple[WholeStack, Faults], user: Callable[[], str], reason: str
) -> None:
    stack, faults = faulty
    ann, knobs = stack.visitor(user()), FAULTS[reason]
    if knobs is None:
        faults.uninstall()
    else:
        faults.plan(**knobs)

    accepted = {name: ann.post("/api/openclaw/instance", {"name": name}) for name in ("default", "spare")}
    operations = {name: one["operation"]["operation_id"] for name, one in accepted.items()}
    for name, operation in operations.items():
        assert ended(ann, operation) == ("failed", reason)
        shown = eventually(lambda name=name: (seen := ann.instance(name=name))["status"] == "error" and seen)
        assert shown["reason"] == reason
        assert "remedy: " in shown["message"]
        assert {"start", "delete"} <= set(shown["can"])
    if knobs and "say" in knobs:
        assert knobs["say"] in ann.instance()["message"], "the gateway's own text belongs to its reason"

    ann.wish("delete", name="spare")
    assert not stack.root_of(accepted["spare"]["instance_id"]).exists()

    faults.heal()
    ann.wish("provision" if reason == "config_rejected" else "start")
    assert ann.instance()["status"] == "ready"
    assert ann.instance()["reason"] is None
    for operation in operations.values():
        assert ends_of(stack, operation) == ["operation_failed"]
    ann.wish("delete")
    assert [line for line in stack.processes() if accepted["default"]["instance_id"] in line] == []


def test_openclaw_may_be_gone_at_the_start_of_an_existing_machine(
    faulty: tuple[WholeStack, Faults], user: Callable[[], str]
) -> None:
    stack, faults = faulty
    ann = stack.visitor(user())
    ann.wish("provision")
    ann.wish("stop")
    faults.uninstall()
    operation = ann.post("/api/openclaw/instance/start")["operation"]["operation_id"]
    assert ended(ann, operation) == ("failed", "openclaw_not_installed")
    assert "install OpenClaw" in ann.instance()["message"]
    faults.heal()
    ann.wish("start")
    ann.wish("delete")


def test_a_gateway_that_does_not_come_back_ends_in_error(
    faulty: tuple[WholeStack, Faults], user: Callable[[], str]
) -> None:
    stack, faults = faulty
    ann = stack.visitor(user())
    instance_id = ann.wish("provision")["instance_id"]
    faults.plan(FAKE_GATEWAY_EXIT="1")
    kill(gateway_pid(stack, instance_id))
    shown = eventually(lambda: (seen := ann.instance())["status"] == "error" and seen, 90)
    assert shown["reason"] == "crash_loop"
    assert "remedy: " in shown["message"]
    faults.heal()
    ann.wish("start")  # at once, while the failed machine may still be on its way out
    assert ann.say(ann.thread()["thread_id"], "well again?").end.event == "run.finished"
    ann.wish("delete")


def test_a_taken_port_is_passed_over(faulty: tuple[WholeStack, Faults], user: Callable[[], str]) -> None:
    stack, _ = faulty
    ann = stack.visitor(user())
    instance_id = ann.wish("provision")["instance_id"]
    gateway = gateway_port(stack, instance_id)
    ann.wish("stop")
    with socket.create_server(("127.0.0.1", gateway)):
        ann.wish("start")
        moved = gateway_port(stack, instance_id)
        assert moved != gateway
        ann.wish("stop")
        with socket.create_server(("127.0.0.1", moved + 100)):  # its controller's
            ann.wish("start")
            assert gateway_port(stack, instance_id) not in (gateway, moved)
            assert ann.say(ann.thread()["thread_id"], "elsewhere?").end.event == "run.finished"
    ann.wish("delete")


def test_the_only_port_is_taken(user: Callable[[], str]) -> None:
    only = {"HATCHERY_PROVISIONER_PORT_COUNT": "1", "HATCHERY_PROVISIONER_START_DEADLINE_S": "10"}
    with faulty_stack(**only) as (stack, _):
        stack.up()
        ann = stack.visitor(user())
        with socket.create_server(("127.0.0.1", stack.port + 100)):
            operation = ann.post("/api/openclaw/instance")["operation"]["operation_id"]
            assert ended(ann, operation) == ("failed", "port_taken")
            assert "remedy: end the program" in ann.instance()["message"]
        ann.wish("start")
        assert ann.instance()["status"] == "ready"
        assert ends_of(stack, operation) == ["operation_failed"]
        ann.wish("delete")


def test_where_gateways_share_a_user_a_second_tenant_is_refused(user: Callable[[], str]) -> None:
    with faulty_stack(HATCHERY_PROVISIONER_TRUST_ALL_USERS="false") as (stack, _):
        stack.up()
        ann, bob = stack.visitor(user()), stack.visitor(user())
        ann.wish("provision")
        accepted = bob.post("/api/openclaw/instance")
        assert ended(bob, accepted["operation"]["operation_id"]) == ("failed", "shared_user")
        shown = bob.instance()
        assert shown["status"] == "error"
        assert "HATCHERY_PROVISIONER_TRUST_ALL_USERS=true" in shown["message"]
        assert not stack.root_of(accepted["instance_id"]).exists()
        bob.wish("delete")
        assert ann.say(ann.thread()["thread_id"], "still there?").end.event == "run.finished"
        ann.wish("delete")
