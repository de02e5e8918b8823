"""/api/platform/*: the seeds' names, and which requests may make a user."""

from __future__ import annotations

from dataclasses import replace

import pytest
from api_events import Events
from hatchery_common.contracts.instances import InstanceStarted, InstanceStatus

KEY = {"x-internal-api-key": "platform-key-0123456789"}


@pytest.mark.parametrize("verb", ["start", "stop", "restart", "destroy"])
@pytest.mark.parametrize("query", ["", "?plan=true"])
async def test_a_verb_for_an_unknown_user_is_refused_and_makes_nobody(world, verb, query):
    answer = await world.client.post(f"/api/platform/{verb}{query}", headers=KEY, json={"userId": "nobody"})
    assert (answer.status_code, answer.json()["error_detail"]["code"]) == (404, "no_user")
    assert answer.json()["error"].startswith(f"platform {verb} get_instance: ")
    assert not world.store.data["users"]
    assert not world.store.sent


async def test_a_verb_needs_the_users_access(world):
    await world.client.post("/api/platform/provision", headers=KEY, json={"userId": "ada"})
    users = world.store.data["users"]
    users["ada"] = replace(users["ada"], access_enabled=False)
    answer = await world.client.post("/api/platform/stop", headers=KEY, json={"userId": "ada"})
    assert (answer.status_code, answer.json()["error_detail"]["code"]) == (403, "access_required")


async def test_a_planned_provision_makes_nobody(world, open_world):
    path = "/api/platform/provision?plan=true"
    planned = await world.client.post(path, headers=KEY, json={"userId": "nobody"})
    assert (planned.status_code, planned.json()["data"]["would"]) == (200, "begin")
    assert not world.store.data["users"]
    assert not world.store.sent
    async with open_world(access="waitlist") as closed:
        refused = await closed.client.post(path, headers=KEY, json={"userId": "nobody"})
        assert refused.json()["error_detail"]["code"] == "access_required"


async def test_platform_speaks_the_seeds_names(world):
    empty = (await world.client.get("/api/platform/status", headers=KEY, params={"userId": "u1"})).json()["data"]
    assert empty["status"] is None
    made = await world.client.post("/api/platform/provision", headers=KEY, json={"userId": "u1"})
    assert made.status_code == 202
    events = Events(world)
    await events.status(InstanceStarted, InstanceStatus.READY)
    found = (await world.client.get("/api/platform/status", headers=KEY, params={"userId": "u1"})).json()["data"]
    assert (found["status"], found["instance"]["status"], found["flyMachineId"]) == ("running", "ready", "mch_1")
    assert found["flyAppName"].startswith("hatchery-")
    assert len(found["flyAppName"]) == len("hatchery-") + 20
    token = (await world.client.get("/api/platform/gateway-token", headers=KEY, params={"userId": "u1"})).json()["data"]
    assert (token["gatewayToken"], token["reason"]) == (None, "trusted_proxy")
    for verb in ("stop", "start", "restart", "destroy"):
        answer = await world.client.post(f"/api/platform/{verb}", headers=KEY, json={"userId": "u1"})
        assert answer.status_code == 202, verb
