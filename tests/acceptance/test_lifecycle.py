"""Life cycle for a website's backend, and what holds for every instance (A4)."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hatchery_cli.demo.leftovers import lock_files, lock_names
from hatchery_common.contracts.instances import InstanceStatus
from people import Person, new_user
from visitor import ENDS, Visitor, data_of, refusal
from whole_stack import WholeStack, eventually, is_alive, kill, run_for_a_charged_second

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def until_settled(stack: WholeStack, user: str, accepted: dict[str, Any]) -> None:
    """Wait for the operation that the platform answered with."""
    stack.visitor(user).settled(accepted["operation_id"])


@pytest.mark.mission("A4.1")
def test_a4_1_the_backend_provisions(stack: WholeStack, newcomer: tuple[str, Visitor], platform: Visitor) -> None:
    user, site = newcomer
    body = {"userId": user, "kilocodeApiKey": "kilo-secret-value"}
    answer = platform.request("POST", "/api/platform/provision", json=body)
    assert answer.status_code == 202
    accepted = data_of(answer)
    assert accepted["userId"] == user
    assert accepted["warnings"], "a key that is not used must be said so"
    assert "kilo-secret-value" not in answer.text
    until_settled(stack, user, accepted)
    assert site.instance()["instance_id"] == accepted["instance_id"]
    assert site.instance()["status"] == "ready"


@pytest.mark.mission("A4.2")
def test_a4_2_start_stop_and_destroy(stack: WholeStack, newcomer: tuple[str, Visitor], platform: Visitor) -> None:
    user, site = newcomer
    site.wish("provision")
    for verb, status in (("stop", "stopped"), ("start", "running"), ("destroy", None)):
        until_settled(stack, user, platform.post(f"/api/platform/{verb}", {"userId": user}))
        assert platform.get("/api/platform/status", params={"userId": user})["status"] == status


@pytest.mark.mission("A4.3")
def test_a4_3_status_under_the_known_names(ann: Person, platform: Visitor) -> None:
    status = platform.get("/api/platform/status", params={"userId": ann.user})
    assert status["status"] == "running"
    assert status["flyMachineId"] == ann.instance["machine_id"]
    assert status["flyAppName"].startswith("hatchery-")
    assert status["instance"]["status"] == "ready"
    by_sandbox_id = platform.get("/api/platform/status", params={"userId": status["sandboxId"]})
    assert by_sandbox_id["instance_id"] == ann.instance["instance_id"]
    unknown = platform.get("/api/platform/status", params={"userId": new_user()})
    assert (unknown["status"], unknown["instance_id"]) == (None, None)


@pytest.mark.mission("A4.4")
def test_a4_4_there_is_no_gateway_token_and_a_reason(ann: Person, platform: Visitor) -> None:
    answer = platform.get("/api/platform/gateway-token", params={"userId": ann.user})
    assert answer["gatewayToken"] is None
    assert answer["reason"] == "trusted_proxy"
    assert "no token exists" in answer["message"]


@pytest.mark.mission("A4.5")
def test_a4_5_platform_routes_need_the_internal_key(stack: WholeStack, ann: Person) -> None:
    strangers = [
        stack.caller(),
        stack.caller(x_internal_api_key="wrong"),
        stack.caller(x_internal_api_key=stack.key("oa-internal-key")),
        ann.site,
    ]
    for stranger in strangers:
        for verb in ("provision", "start", "stop", "restart", "destroy"):
            refusal(stranger.request("POST", f"/api/platform/{verb}", json={"userId": ann.user}), 401)
        for what in ("status", "gateway-token"):
            refusal(stranger.request("GET", f"/api/platform/{what}", params={"userId": ann.user}), 401)
    assert ann.site.instance()["status"] == "ready"


@pytest.mark.mission("A4.6")
def test_a4_6_wishes_at_once_have_one_writer(stack: WholeStack, newcomer: tuple[str, Visitor]) -> None:
    user, site = newcomer
    instance_id = site.wish("provision")["instance_id"]
    verbs = ["stop", "start", "restart", "stop", "restart", "start"]

    def wish(verb: str) -> Any:
        return stack.visitor(user).post(f"/api/openclaw/instance/{verb}")["operation"]

    with ThreadPoolExecutor(len(verbs)) as pool:
        operations = {one["operation_id"]: one for one in pool.map(wish, verbs) if one is not None}
    for operation_id in operations:
        list(site.follow(f"/api/operations/{operation_id}/events"))
        events = [event["type"] for event in site.get(f"/api/operations/{operation_id}")["events"]]
        assert len([event for event in events if event in ENDS]) == 1, events
    generations = [one["generation"] for one in operations.values()]
    assert len(set(generations)) == len(generations)
    last = max(operations.values(), key=lambda one: one["generation"])
    wanted = "stopped" if last["kind"] == "stop" else "running"
    settled = eventually(lambda: (now := site.instance())["status"] in ("ready", "stopped") and now)
    assert settled["generation"] == last["generation"]
    assert settled["desired"] == wanted
    running = [line for line in stack.processes() if "hatchery_controller" in line and instance_id in line]
    assert len(running) == (0 if wanted == "stopped" else 1)


@pytest.mark.mission("A4.7")
def test_a4_7_a_machine_is_created_on_the_first_start_only(newcomer: tuple[str, Visitor]) -> None:
    _, site = newcomer
    assert site.instance() is None
    site.wish("provision")
    born = site.instance()
    site.wish("stop")
    site.wish("start")
    assert site.instance()["machine_id"] == born["machine_id"]
    site.wish("restart")
    assert site.instance()["machine_id"] != born["machine_id"], "a restart renews the generation"


@pytest.mark.mission("A4.8")
def test_a4_8_what_changes_behind_our_back_is_mended(stack: WholeStack, newcomer: tuple[str, Visitor]) -> None:
    _, site = newcomer
    instance_id = site.wish("provision")["instance_id"]
    thread = site.thread()["thread_id"]
    site.say(thread, "before the blow")
    dead = stack.controller_pid(instance_id)
    kill(dead)

    def mended() -> bool:
        try:
            alive = stack.controller_pid(instance_id)
        except (FileNotFoundError, ValueError):
            return False
        return alive != dead and is_alive(alive) and site.instance()["status"] == "ready"

    eventually(mended, 90)
    assert site.say(thread, "after the blow").end.event == "run.finished"
    running = [line for line in stack.processes() if "hatchery_controller" in line and instance_id in line]
    assert len(running) == 1


@pytest.mark.mission("A4.13")
def test_a4_13_stop_keeps_data_and_destroy_removes_it(stack: WholeStack, newcomer: tuple[str, Visitor]) -> None:
    _, site = newcomer
    root = stack.root_of(site.wish("provision")["instance_id"])
    (root / "workspace" / "notes.md").write_text("mine")
    site.wish("stop")
    assert (root / "workspace" / "notes.md").read_text() == "mine"
    site.wish("start")
    assert (root / "workspace" / "notes.md").read_text() == "mine"
    site.wish("delete")
    assert not root.exists()


@pytest.mark.mission("A4.14")
def test_a4_14_machine_seconds_are_metered_and_visible(newcomer: tuple[str, Visitor]) -> None:
    _, site = newcomer
    instance_id = site.wish("provision")["instance_id"]
    run_for_a_charged_second()
    site.wish("stop")
    summary = eventually(lambda: (found := site.get("/api/openclaw/billing/summary"))["machine_seconds"] > 0 and found)
    lines = [line for line in summary["lines"] if line["kind"] == "machine_time"]
    assert {line["reference"] for line in lines} == {instance_id}
    assert sum(line["amount_micro"] for line in lines) == -summary["machine_seconds"], "1 micro-USD a second"


@pytest.mark.mission("A4.15")
def test_a4_15_there_is_one_set_of_states(newcomer: tuple[str, Visitor]) -> None:
    _, site = newcomer
    seen: list[str] = []
    for verb in ("provision", "stop", "start", "delete"):
        accepted = site.wish(verb)
        seen.append(accepted["status"])
        events = site.get(accepted["operation"]["url"])["events"]
        seen += [event["data"]["status"] for event in events if "status" in event["data"]]
    assert set(seen) <= {status.value for status in InstanceStatus}
    assert {"provisioning", "starting", "stopping", "deleting"} <= set(seen)


@pytest.mark.mission("A4.16")
def test_a4_16_last_ready_at_is_set_when_ready(newcomer: tuple[str, Visitor]) -> None:
    _, site = newcomer
    accepted = site.post("/api/openclaw/instance")
    assert accepted["last_ready_at"] is None
    site.settled(accepted["operation"]["operation_id"])
    first = site.instance()["last_ready_at"]
    assert first >= accepted["created_at"]
    site.wish("stop")
    assert site.instance()["last_ready_at"] == first
    site.wish("start")
    assert site.instance()["last_ready_at"] > first


def assert_gone(stack: WholeStack, site: Visitor, instance_id: str, locks: set[str]) -> None:
    assert site.instance() is None
    assert not stack.root_of(instance_id).exists()
    assert [line for line in stack.processes() if instance_id in line] == []
    assert lock_files(locks - lock_names(stack.machines)) == []
    refusal(site.request("GET", "/api/openclaw/sessions"), 404)


@pytest.mark.mission("A4.17")
def test_a4_17_delete_tears_everything_down(stack: WholeStack, newcomer: tuple[str, Visitor]) -> None:
    _, site = newcomer
    instance_id = site.wish("provision")["instance_id"]
    locks = lock_names(stack.machines)
    site.wish("delete")
    assert_gone(stack, site, instance_id, locks)
    machines = stack.sql("provisioner", "SELECT stage FROM machines WHERE instance_id = $1", instance_id)
    assert {row["stage"] for row in machines} <= {"gone"}
    assert stack.sql("provisioner", "SELECT 1 FROM leases WHERE instance_id = $1", instance_id) == []


@pytest.mark.mission("AC14")
def test_ac14_the_status_becomes_running_with_a_machine(
    stack: WholeStack, newcomer: tuple[str, Visitor], platform: Visitor
) -> None:
    user, _ = newcomer
    accepted = platform.post("/api/platform/provision", {"userId": user})
    assert accepted["status"] in ("provisioning", "starting")
    until_settled(stack, user, accepted)
    status = platform.get("/api/platform/status", params={"userId": user})
    assert status["status"] == "running"
    assert status["flyMachineId"].startswith("mch_")
    log = (stack.root_of(status["instance_id"]) / "logs" / "gateway.log").read_text()
    assert "listening on" in log


@pytest.mark.mission("AC15")
def test_ac15_destroy_leaves_nothing_behind(
    stack: WholeStack, newcomer: tuple[str, Visitor], platform: Visitor, acting: Callable[[str], Visitor]
) -> None:
    user, site = newcomer
    instance_id = site.wish("provision")["instance_id"]
    site.wish("stop")
    locks = lock_names(stack.machines)
    until_settled(stack, user, platform.post("/api/platform/destroy", {"userId": user}))
    assert_gone(stack, site, instance_id, locks)
    assert acting(user).post("/api/openclaw/instance")["instance_id"] != instance_id, "the name is free again"
