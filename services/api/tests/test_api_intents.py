"""Claims, operations, idempotency, plans and the overlay."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from hatchery_api.domain.errors import InstanceDeleting, NoInstance
from hatchery_api.domain.instances import Claim, Decision, Sight, decide, shown
from hatchery_api.domain.operations import Kind, Operation, OperationState
from hatchery_api.handlers import projections, sweeper
from hatchery_common.bus.delivery import Delivery
from hatchery_common.contracts.accounts import OpenAccount
from hatchery_common.contracts.instances import (
    DeleteInstance,
    DesiredState,
    InstanceDeleted,
    InstanceOperationFailed,
    InstanceOperationFinished,
    InstanceStarted,
    InstanceState,
    InstanceStatus,
    InstanceStepFinished,
    InstanceStepStarted,
    InstanceStopped,
    ProvisionInstance,
    StopInstance,
)

ME = {"X-OA-Internal-Key": "oa-internal-key-0123456789", "X-OA-User-Id": "ada"}
INSTANCE = "/api/openclaw/instance"


def state(status: InstanceStatus, *, version=1, generation=1, operation_id=None, **changes) -> InstanceState:
    given = {
        "instance_id": "ins_a", "tenant": "t1", "name": "default", "version": version, "generation": generation,
        "desired": DesiredState.RUNNING, "status": status, "since_ms": 5, "operation_id": operation_id,
        "driver": "process", "machine_id": "mch_1", "created_at_ms": 1, "updated_at_ms": 5, "last_ready_at_ms": 4,
    }  # fmt: skip
    return InstanceState(**{**given, **changes})


def operation(kind: Kind, *, generation=1, at=OperationState.ACCEPTED) -> Operation:
    return Operation("op_a", "t1", "ins_a", "default", kind, generation, at, 10, 20, 10)


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


class Events:
    """Delivers events about ada's one instance."""

    def __init__(self, world) -> None:
        self.world = world
        self.count = 0

    def ids(self):
        claim = next(iter(self.world.store.data["claims"].values()))
        return {"instance_id": claim.instance_id, "tenant": claim.tenant}

    async def __call__(self, handler, message, event_id=None):
        self.count += 1
        delivery = Delivery(
            message, event_id or f"evt_{self.count}", message.message_type(), message.tenant, message.subject,
            "provisioner", datetime.now(UTC), "EVT", self.count,
        )  # fmt: skip
        await handler(delivery, store=self.world.store, changes=self.world.door.changes)

    async def status(self, kind, status, **changes):
        ids = self.ids()
        shown_state = state(status, **{**ids, **changes})
        await self(projections.project_instance, kind(**ids, state=shown_state))


@pytest.fixture
async def provisioned(world):
    operation_id = (await world.client.post(INSTANCE, headers=ME)).json()["data"]["operation_id"]
    return Events(world), operation_id


async def finish(events, operation_id, generation=1):
    ended = InstanceOperationFinished(**events.ids(), operation_id=operation_id, generation=generation)
    await events(projections.end_operation, ended)


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


async def test_old_versions_and_repeats_change_nothing(world, provisioned):
    events, first = provisioned
    await events.status(InstanceStarted, InstanceStatus.READY, version=5, operation_id=first)
    await events.status(InstanceStopped, InstanceStatus.STOPPED, version=4)
    assert (await world.client.get(INSTANCE, headers=ME)).json()["data"]["status"] == "ready"
    ended = InstanceOperationFinished(**events.ids(), operation_id=first, generation=1)
    await events(projections.end_operation, ended, "evt_end")
    await events(projections.end_operation, ended, "evt_end")
    late = InstanceOperationFailed(**events.ids(), operation_id=first, generation=1, reason="late")
    await events(projections.end_operation, late)
    told = (await world.client.get(f"/api/operations/{first}", headers=ME)).json()["data"]
    assert (told["status"], [event["type"] for event in told["events"]]) == (
        "finished",
        ["accepted", "status", "finished"],
    )


async def test_a_failed_operation_says_why_in_one_prefixed_line(world, provisioned):
    events, first = provisioned
    failed = InstanceOperationFailed(
        **events.ids(), operation_id=first, generation=1, reason="config_rejected", message="unknown key `x`"
    )
    await events(projections.end_operation, failed)
    told = (await world.client.get(f"/api/operations/{first}", headers=ME)).json()["data"]
    assert told["error"] == "openclaw createInstance provision_instance: config_rejected: unknown key `x`"
    assert (await world.client.get(INSTANCE, headers=ME)).json()["data"]["status"] == "error"
    assert (await world.client.post(INSTANCE, headers=ME)).json()["data"]["operation_id"] != first


def parse(text):
    frames = [
        dict(line.split(": ", 1) for line in frame.split("\n") if not line.startswith(":"))
        for frame in text.split("\n\n")
        if frame
    ]
    return [(int(frame["id"]) if "id" in frame else None, frame["event"]) for frame in frames if "event" in frame]


async def test_progress_streams_to_its_end_and_resumes(world, provisioned):
    events, first = provisioned
    step = {**events.ids(), "operation_id": first, "step": "start_machine"}
    url = f"/api/operations/{first}/events"
    reading = asyncio.create_task(world.client.get(url, headers=ME))
    await asyncio.sleep(0.05)
    await events(projections.note_step, InstanceStepStarted(**step))
    await events(projections.note_step, InstanceStepFinished(**step, ok=True, duration_ms=3))
    await finish(events, first)
    expected = [(1, "accepted"), (2, "step_started"), (3, "step_finished"), (4, "finished")]
    assert parse((await asyncio.wait_for(reading, 5)).text) == expected
    for seen, rest in (("1", expected[1:]), ("3", expected[3:]), ("99", expected), ("nonsense", expected)):
        assert parse((await world.client.get(url, headers={**ME, "Last-Event-ID": seen})).text) == rest
    assert (await world.client.get(url, headers={**ME, "Last-Event-ID": "4"})).status_code == 204


async def test_anothers_operation_does_not_exist(world, provisioned):
    _, first = provisioned
    other = {**ME, "X-OA-User-Id": "bea"}
    for path in (f"/api/operations/{first}", f"/api/operations/{first}/events"):
        assert (await world.client.get(path, headers=other)).status_code == 404


async def test_the_sweeper_marks_and_never_guesses(world, provisioned):
    events, first = provisioned
    tools = {"store": world.store, "clock": world.door.clock, "changes": world.door.changes}
    assert await sweeper.mark_overdue(**tools) == 0
    world.door.clock.at += timedelta(hours=1)
    assert await sweeper.mark_overdue(**tools) == 1
    assert await sweeper.mark_overdue(**tools) == 0
    told = (await world.client.get(f"/api/operations/{first}", headers=ME)).json()["data"]
    assert (told["status"], told["overdue"]) == ("accepted", True)
    await finish(events, first)
    assert (await world.client.get(f"/api/operations/{first}", headers=ME)).json()["data"]["status"] == "finished"


async def test_platform_speaks_the_seeds_names(world):
    key = {"x-internal-api-key": "platform-key-0123456789"}
    empty = (await world.client.get("/api/platform/status", headers=key, params={"userId": "u1"})).json()["data"]
    assert empty["status"] is None
    made = await world.client.post("/api/platform/provision", headers=key, json={"userId": "u1"})
    assert made.status_code == 202
    events = Events(world)
    await events.status(InstanceStarted, InstanceStatus.READY)
    found = (await world.client.get("/api/platform/status", headers=key, params={"userId": "u1"})).json()["data"]
    assert (found["status"], found["instance"]["status"], found["flyMachineId"]) == ("running", "ready", "mch_1")
    assert found["flyAppName"].startswith("hatchery-")
    assert len(found["flyAppName"]) == len("hatchery-") + 20
    token = (await world.client.get("/api/platform/gateway-token", headers=key, params={"userId": "u1"})).json()["data"]
    assert (token["gatewayToken"], token["reason"]) == (None, "trusted_proxy")
    for verb in ("stop", "start", "restart", "destroy"):
        answer = await world.client.post(f"/api/platform/{verb}", headers=key, json={"userId": "u1"})
        assert answer.status_code == 202, verb
