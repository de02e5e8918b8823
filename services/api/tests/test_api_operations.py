"""Operations: what events make of them, their progress page by page and as a stream, and the sweeper."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from api_events import INSTANCE, ME, finish
from hatchery_api.handlers import projections, sweeper
from hatchery_common.contracts.instances import InstanceStarted, InstanceStatus, InstanceStopped, ProvisionInstance
from hatchery_common.contracts.operations import (
    InstanceOperationFailed,
    InstanceOperationFinished,
    InstanceOperationSuperseded,
    InstanceStepFinished,
    InstanceStepStarted,
)
from hatchery_common.sse import read_events


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


async def test_an_operation_shows_its_newest_events_and_every_other_page(world, provisioned):
    events, first = provisioned
    step = {**events.ids(), "operation_id": first}
    for number in range(120):
        await events(projections.note_step, InstanceStepStarted(**step, step=f"step_{number}"))
    await finish(events, first)

    async def page(**params):
        answer = await world.client.get(f"/api/operations/{first}", headers=ME, params=params)
        data = answer.json()["data"]
        return [event["number"] for event in data["events"]], data

    numbers, newest = await page()
    assert numbers == list(range(23, 123))
    assert (newest["status"], newest["events"][-1]["type"], newest["last_event"]) == ("finished", "finished", 122)
    seen, after = [], 0
    while after < newest["last_event"]:
        numbers, _ = await page(after=after, limit=50)
        seen, after = [*seen, *numbers], numbers[-1]
    assert seen == list(range(1, 123))
    assert (await page(after=122))[0] == []
    assert (await page(limit=1))[0] == [122]
    for wrong in ({"after": -1}, {"limit": 0}, {"limit": 501}, {"after": 2**31}):
        assert (await world.client.get(f"/api/operations/{first}", headers=ME, params=wrong)).status_code == 422


def seen_in(text):
    """(number, type) of every event in a stream."""
    return [(int(one.id) if one.id else None, one.event) for one in read_events(text.split("\n"))]


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
    assert seen_in((await asyncio.wait_for(reading, 5)).text) == expected
    for seen, rest in (("1", expected[1:]), ("3", expected[3:]), ("99", expected), ("nonsense", expected)):
        assert seen_in((await world.client.get(url, headers={**ME, "Last-Event-ID": seen})).text) == rest
    assert (await world.client.get(url, headers={**ME, "Last-Event-ID": "4"})).status_code == 204


async def test_anothers_operation_does_not_exist(world, provisioned):
    _, first = provisioned
    other = {**ME, "X-OA-User-Id": "bea"}
    for path in (f"/api/operations/{first}", f"/api/operations/{first}/events"):
        assert (await world.client.get(path, headers=other)).status_code == 404


async def test_a_repeat_of_an_overdue_wish_is_sent_again_and_ends_the_old_operation(world, provisioned):
    events, first = provisioned
    world.door.clock.at += timedelta(hours=1)
    await sweeper.mark_overdue(store=world.store, clock=world.door.clock, changes=world.door.changes)
    answers = [(await world.client.post(INSTANCE, headers=ME)).json()["data"] for _ in range(2)]
    second = answers[0]["operation_id"]
    assert [one["operation_id"] for one in answers] == [second, second] != [first, first]
    sent = [message for _, message in world.store.sent if isinstance(message, ProvisionInstance)]
    assert [(one.operation_id, one.generation) for one in sent] == [(first, 1), (second, 2)]
    superseded = InstanceOperationSuperseded(**events.ids(), operation_id=first, generation=1, reason="newer_wish")
    await events(projections.end_operation, superseded)
    await finish(events, second, 2)
    told = [(await world.client.get(f"/api/operations/{one}", headers=ME)).json()["data"] for one in (first, second)]
    assert [one["status"] for one in told] == ["superseded", "finished"]


async def test_a_late_stop_leaves_a_provision_with_nothing_to_do(world, provisioned):
    events, first = provisioned
    await events.status(InstanceStarted, InstanceStatus.READY, operation_id=first)
    await finish(events, first)
    await world.client.post(f"{INSTANCE}/stop", headers=ME)
    world.door.clock.at += timedelta(hours=1)
    await sweeper.mark_overdue(store=world.store, clock=world.door.clock, changes=world.door.changes)
    assert (await world.client.post(INSTANCE, headers=ME)).status_code == 200
    again = (await world.client.post(f"{INSTANCE}/stop", headers=ME)).json()["data"]
    assert (again["status"], again["generation"]) == ("stopping", 3)


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
