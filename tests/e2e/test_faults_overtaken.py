"""Starts that do not come to an end are overtaken: a stop stays a stop whatever is delivered again, a delete acts at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator

import pytest
from faults import Faults, again, ended, ends_of, faulty_stack, is_caught_up, publish, records
from hatchery_common.bus.envelope import Encoded, encode
from hatchery_common.contracts.instances import WakeInstance
from hatchery_common.ids import new_id, tenant_key
from whole_stack import WholeStack, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
_START_DEADLINE_S = 90
_ACTS_WITHIN_S = 20.0  # of which 5 s are the gateway's grace


@pytest.fixture(scope="module")
def faulty() -> Generator[tuple[WholeStack, Faults]]:
    with faulty_stack(HATCHERY_PROVISIONER_START_DEADLINE_S=str(_START_DEADLINE_S)) as (stack, faults):
        stack.up()
        yield stack, faults


def wake(user: str, instance_id: str, generation: int, *, for_s: float) -> Encoded:
    not_after_ms = int((time.time() + for_s) * 1000)
    tenant = tenant_key(user)
    message = WakeInstance(tenant=tenant, instance_id=instance_id, generation=generation, not_after_ms=not_after_ms)
    return encode(message, source="hatchery/runtime-proxy")


def controllers(stack: WholeStack, instance_id: str) -> list[str]:
    return [line for line in stack.processes() if "hatchery_controller" in line and instance_id in line]


def test_a_stop_outlives_old_starts_and_wakes(faulty: tuple[WholeStack, Faults], user: Callable[[], str]) -> None:
    stack, faults = faulty
    who = user()
    ann = stack.visitor(who)
    instance_id = ann.wish("provision")["instance_id"]
    ann.wish("stop")

    faults.plan(FAKE_GATEWAY_EXIT="1")
    before = faults.starts(instance_id)
    start = ann.post("/api/openclaw/instance/start")["operation"]["operation_id"]
    eventually(lambda: faults.starts(instance_id) >= before + 2)  # it failed, paused, and was tried again
    ann.wish("stop")
    assert ended(ann, start)[0] == "superseded"
    faults.heal()

    launched, generation = faults.starts(instance_id), ann.instance()["generation"]
    [old] = records(stack, "CMD", f"cmd.*.instance.start.{instance_id}")
    assert old.id is not None
    publish(
        stack,
        again(old, old.id),
        again(old, new_id("cmd")),
        wake(who, instance_id, generation - 1, for_s=60),
        wake(who, instance_id, generation, for_s=-1),
        wake(who, instance_id, generation, for_s=60),  # in time, but its owner has stopped it
    )
    replayed = stack.json("stream", "replay", "CMD", "--from-seq", "1", "--to", "provisioner", "--execute")
    assert replayed["done"]
    assert replayed["types"]["instance.start"] == 3
    eventually(lambda: is_caught_up(stack, "CMD", "provisioner"))

    shown = ann.instance()
    assert (shown["status"], shown["generation"]) == ("stopped", generation)
    assert faults.starts(instance_id) == launched
    assert controllers(stack, instance_id) == []
    assert set(ends_of(stack, start)) == {"operation_superseded"}
    assert ended(ann, start)[0] == "superseded"
    ann.wish("start")
    ann.wish("delete")


@pytest.mark.parametrize(
    "knobs",
    [
        {"FAKE_GATEWAY_NEVER_READY": "1"},
        {"FAKE_GATEWAY_NEVER_READY": "1", "FAKE_GATEWAY_IGNORE_SIGTERM": "1"},
        {"FAKE_GATEWAY_EXIT": "1"},
    ],
    ids=["never ready", "never ready and deaf", "backing off"],
)
def test_delete_acts_while_a_start_hangs(
    faulty: tuple[WholeStack, Faults], user: Callable[[], str], knobs: dict[str, str]
) -> None:
    stack, faults = faulty
    ann = stack.visitor(user())
    faults.plan(**knobs)
    accepted = ann.post("/api/openclaw/instance")
    instance_id = accepted["instance_id"]
    eventually(lambda: faults.starts(instance_id))
    began = time.monotonic()
    ann.wish("delete")
    assert time.monotonic() - began < _ACTS_WITHIN_S
    assert ended(ann, accepted["operation"]["operation_id"])[0] == "superseded"
    assert ann.instance() is None
    assert not stack.root_of(instance_id).exists()
    eventually(lambda: [line for line in stack.processes() if instance_id in line] == [])
    assert ends_of(stack, accepted["operation"]["operation_id"]) == ["operation_superseded"]
    faults.heal()
