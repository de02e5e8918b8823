"""Claims, operations, idempotency, plans and the overlay."""

from __future__ import annotations

import asyncio

import pytest
from api_events import INSTANCE, ME, finish, operation, state
from hatchery_api.domain.errors import InstanceDeleting, NoInstance
from hatchery_api.domain.instances import Claim, Decision, Sight, decide, shown
from hatchery_api.domain.operations import Kind, OperationState
from hatchery_common.contracts.accounts import OpenAccount
from hatchery_common.contracts.instances import (
    DeleteInstance,
    DesiredState,
    InstanceDeleted,
    InstanceStarted,
    InstanceStatus,
    InstanceStopped,
    ProvisionInstance,
    StopInstance,
)

CLAIM = Claim("t1", "default", "ins_a", 1, False, 1)
DELETING = Claim("t1", "default", "ins_a", 1, True, 1)
READY, STOPPED = state(InstanceStatus.READY), state(InstanceStatus.STOPPED, desired=DesiredState.STOPPED)


@pytest.mark.parametrize(
    ("kind", "sight", "decision"),
    [
        (Kind.PROVISION, Sight(None, None, None), Decision.BEGIN),
        (Kind.PROVISION, Sight(CLAIM, READY, None), Decision.NOTHING),
        (Kind.PROVISION, Sight(CLAIM, STOPPED, None), Decision.NOTHING),
        (Kind.PROVISION, Sight(CLAIM, state(InstanceStatus.ERROR), None), Decision.BEGIN),
        (Kind.PROVISION, Sight(CLAIM, None, operation(Kind.PROVISION)), Decision.JOIN),
        (Kind.PROVISION, Sight(CLAIM, READY, operation(Kind.STOP)), Decision.JOIN),
        (Kind.START, Sight(CLAIM, None, operation(Kind.PROVISION)), Decision.JOIN),
        (Kind.START, Sight(CLAIM, READY, operation(Kind.STOP)), Decision.BEGIN),
        (Kind.START, Sight(CLAIM, READY, None), Decision.NOTHING),
        (Kind.START, Sight(CLAIM, STOPPED, None), Decision.BEGIN),
        (Kind.STOP, Sight(CLAIM, STOPPED, None), Decision.NOTHING),
        (Kind.STOP, Sight(CLAIM, READY, operation(Kind.START)), Decision.BEGIN),
        (Kind.STOP, Sight(CLAIM, READY, operation(Kind.STOP)), Decision.JOIN),
        (Kind.RESTART, Sight(CLAIM, READY, None), Decision.BEGIN),
        (Kind.DELETE, Sight(CLAIM, state(InstanceStatus.ERROR), operation(Kind.START)), Decision.BEGIN),
        (Kind.DELETE, Sight(DELETING, READY, operation(Kind.DELETE)), Decision.JOIN),
        (Kind.DELETE, Sight(DELETING, READY, operation(Kind.DELETE, at=OperationState.FAILED)), Decision.BEGIN),
    ],
)
def test_what_a_wish_does(kind, sight, decision):
    assert decide(kind, "default", sight) is decision


STARTING = state(InstanceStatus.STARTING)


@pytest.mark.parametrize(
    ("kind", "sight", "decision"),
    [
        (Kind.PROVISION, Sight(CLAIM, None, operation(Kind.PROVISION, overdue_ms=21)), Decision.BEGIN),
        (Kind.PROVISION, Sight(CLAIM, STARTING, operation(Kind.PROVISION, overdue_ms=21)), Decision.BEGIN),
        (Kind.PROVISION, Sight(CLAIM, READY, operation(Kind.STOP, overdue_ms=21)), Decision.NOTHING),
        (Kind.PROVISION, Sight(CLAIM, None, operation(Kind.STOP, overdue_ms=21)), Decision.BEGIN),
        (Kind.START, Sight(CLAIM, STARTING, operation(Kind.START, overdue_ms=21)), Decision.BEGIN),
        (Kind.STOP, Sight(CLAIM, READY, operation(Kind.STOP, overdue_ms=21)), Decision.BEGIN),
        (Kind.DELETE, Sight(DELETING, READY, operation(Kind.DELETE, overdue_ms=21)), Decision.BEGIN),
    ],
)
def test_a_wish_does_not_wait_behind_an_overdue_operation(kind, sight, decision):
    assert decide(kind, "default", sight) is decision


def test_what_a_wish_may_not_do():
    for kind in (Kind.START, Kind.STOP, Kind.RESTART, Kind.DELETE):
        with pytest.raises(NoInstance):
            decide(kind, "default", Sight(None, None, None))
    for kind in (Kind.PROVISION, Kind.START, Kind.STOP, Kind.RESTART):
        with pytest.raises(InstanceDeleting) as refused:
            decide(kind, "default", Sight(DELETING, READY, operation(Kind.DELETE)))
        assert refused.value.context["operation_id"] == "op_a"


def test_the_overlay_shows_what_was_accepted_and_yields_to_what_was_reported():
    fresh = shown(Sight(CLAIM, None, operation(Kind.PROVISION)))
    assert (fresh.status, fresh.operation_id, fresh.waiting_for) == ("provisioning", "op_a", "provisioner")
    stopping = shown(Sight(CLAIM, READY, operation(Kind.STOP, generation=2)))
    assert (stopping.status, stopping.machine_id, stopping.last_ready_at_ms) == ("stopping", "mch_1", 4)
    assert stopping.desired is DesiredState.STOPPED
    reported = state(InstanceStatus.STARTING, generation=2)
    assert shown(Sight(CLAIM, reported, operation(Kind.STOP, generation=2))) is reported
    assert shown(Sight(CLAIM, READY, operation(Kind.STOP, generation=2, at=OperationState.FINISHED))) is READY
    failed = shown(Sight(CLAIM, None, operation(Kind.PROVISION, at=OperationState.FAILED)))
    assert failed.status is InstanceStatus.ERROR
    assert failed.message.startswith("openclaw createInstance provision_instance: ")


async def test_a_provision_shows_at_once_and_repeats_join_it(world):
    assert (await world.client.get(INSTANCE, headers=ME)).json() == {"ok": True, "data": None}
    made = await world.client.post(INSTANCE, headers=ME)
    assert made.status_code == 202
    data = made.json()["data"]
    assert made.headers["location"] == f"/api/operations/{data['operation_id']}"
    seen = (await world.client.get(INSTANCE, headers=ME)).json()["data"]
    assert (seen["status"], seen["instance_id"]) == ("provisioning", data["instance_id"])
    again = (await world.client.post(INSTANCE, headers=ME)).json()["data"]
    assert again["operation_id"] == data["operation_id"]
    sent = [message for _, message in world.store.sent if not isinstance(message, OpenAccount)]
    assert len(sent) == 1
    assert isinstance(sent[0], ProvisionInstance)
    assert (sent[0].generation, sent[0].operation_id) == (1, data["operation_id"])


async def test_twenty_provisions_at_once_are_one(world):
    posts = [
        world.client.post(INSTANCE, headers={**ME, **({"Idempotency-Key": f"k{number % 4}"} if number % 2 else {})})
        for number in range(20)
    ]
    answers = await asyncio.gather(*posts)
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["data"]["instance_id"] for answer in answers}) == 1
    assert len([message for _, message in world.store.sent if isinstance(message, ProvisionInstance)]) == 1


async def test_a_key_has_one_effect_and_one_body(world):
    keyed = {**ME, "Idempotency-Key": "k1"}
    first = await world.client.post(INSTANCE, headers=keyed, json={"name": "one"})
    repeated = await world.client.post(INSTANCE, headers=keyed, json={"name": "one"})
    assert repeated.json()["data"]["operation_id"] == first.json()["data"]["operation_id"]
    assert repeated.headers["idempotency-replayed"] == "true"
    other = await world.client.post(INSTANCE, headers=keyed, json={"name": "two"})
    assert other.status_code == 422
    assert other.json()["error_detail"]["code"] == "idempotency_mismatch"
    assert (await world.client.get(INSTANCE, headers=ME, params={"name": "two"})).json()["data"] is None
    another_user = {**keyed, "X-OA-User-Id": "bea"}
    assert (await world.client.post(INSTANCE, headers=another_user, json={"name": "two"})).status_code == 202
    assert (await world.client.delete(f"{INSTANCE}?name=one", headers=keyed)).status_code == 202
    assert (await world.client.post(INSTANCE, headers={**ME, "Idempotency-Key": "a b"})).status_code == 422


async def test_a_plan_changes_nothing(world):
    planned = await world.client.post(f"{INSTANCE}?plan=true", headers=ME)
    assert planned.status_code == 200
    data = planned.json()["data"]
    assert (data["plan"], data["would"], data["commands"]) == (True, "begin", ["instance.provision"])
    assert not world.store.data["claims"]
    assert not world.store.data["operations"]
    await world.client.post(INSTANCE, headers=ME)
    assert (await world.client.post(f"{INSTANCE}?plan=true", headers=ME)).json()["data"]["would"] == "join"


async def test_the_whole_life_by_events(world, provisioned):
    events, first = provisioned
    await events.status(InstanceStarted, InstanceStatus.READY, operation_id=first)
    await finish(events, first)
    ready = (await world.client.get(INSTANCE, headers=ME)).json()["data"]
    assert (ready["status"], ready["operation"], ready["last_ready_at"]) == ("ready", None, 4)
    assert (await world.client.post(INSTANCE, headers=ME)).status_code == 200
    stop = (await world.client.post(f"{INSTANCE}/stop", headers=ME)).json()["data"]
    assert (stop["status"], stop["generation"]) == ("stopping", 2)
    assert isinstance(world.store.sent[-1][1], StopInstance)
    stopped = {"version": 2, "generation": 2, "desired": DesiredState.STOPPED}
    await events.status(InstanceStopped, InstanceStatus.STOPPED, **stopped)
    await finish(events, stop["operation_id"], 2)
    delete = await world.client.delete(INSTANCE, headers=ME)
    assert delete.json()["data"]["status"] == "deleting"
    assert isinstance(world.store.sent[-1][1], DeleteInstance)
    refused = await world.client.post(INSTANCE, headers=ME)
    assert refused.status_code == 409
    assert refused.json()["error_detail"]["operation_id"] == delete.json()["data"]["operation_id"]
    assert refused.json()["error"].startswith("openclaw createInstance get_instance: ")
    ids = events.ids()
    await events.status(InstanceDeleted, InstanceStatus.DELETED, version=3, generation=3)
    assert (await world.client.get(INSTANCE, headers=ME)).json()["data"] is None
    renewed = (await world.client.post(INSTANCE, headers=ME)).json()["data"]
    assert renewed["instance_id"] != ids["instance_id"]
