"""Who stands beside a gateway, even with a neighbour's secrets in hand, is nobody."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import httpx
import psutil
import pytest
from faults import gateway_port
from hatchery_common.ids import tenant_key
from hatchery_common.secrets import (
    controller_token,
    machine_header_name,
    owner_identity,
    runtime_service_token,
    service_identity,
)
from hatchery_controller.domain.template import controller_identity
from impostors import ATTRIBUTIONS, REFUSED, attempts, greeted, http_answers
from visitor import Visitor, refusal
from whole_stack import WholeStack, eventually, whole_stack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
ANN, BOB = "ann@example.com", "bob@example.com"
_REAL = {
    "HATCHERY_PROVISIONER_NODE": "",
    "HATCHERY_PROVISIONER_OPENCLAW": "",
    "HATCHERY_PROVISIONER_SEPARATE_USERS": "true",
}


@dataclass(frozen=True)
class Home:
    """One user's running instance and all secrets that its machine holds."""

    stack: WholeStack
    user: str
    site: Visitor
    instance_id: str

    @property
    def record(self) -> dict[str, Any]:
        return json.loads((self.stack.root_of(self.instance_id) / "controller.json").read_text())

    @property
    def machine_id(self) -> str:
        return self.site.instance()["machine_id"]

    @property
    def gateway(self) -> str:
        return f"http://127.0.0.1:{gateway_port(self.stack, self.instance_id)}"

    @property
    def controller(self) -> str:
        return f"http://127.0.0.1:{self.record['port']}"

    @property
    def header(self) -> str:
        return machine_header_name(bytes.fromhex(self.stack.key("machine-identity")), self.machine_id)

    @property
    def controller_token(self) -> str:
        return controller_token(bytes.fromhex(self.stack.key("controller")), self.machine_id)

    @property
    def model_token(self) -> str:
        """As the tenant's own agent can read it."""
        environment = psutil.Process(self.record["gateway_pid"]).environ()
        [token] = [value for value in environment.values() if value.startswith("eyJ")]
        return token

    def models(self, token: str) -> int:
        """The model gateway's answer to this token."""
        headers = {"authorization": f"Bearer {token}"}
        url = f"http://127.0.0.1:{self.stack.port + 2}/llm/v1/models"
        return httpx.get(url, headers=headers, timeout=30, trust_env=False).status_code


def settle_in(stack: WholeStack) -> tuple[Home, Home]:
    stack.up()
    sites = {user: stack.visitor(user) for user in (ANN, BOB)}
    accepted = {user: site.post("/api/openclaw/instance") for user, site in sites.items()}
    for user, site in sites.items():
        site.settled(accepted[user]["operation"]["operation_id"])
    ann, bob = (Home(stack, user, sites[user], accepted[user]["instance_id"]) for user in (ANN, BOB))
    return ann, bob


@pytest.fixture(scope="module")
def homes() -> Generator[tuple[Home, Home]]:
    with whole_stack("one") as stack:
        yield settle_in(stack)


def no_impostor_gets_in(ann: Home, bob: Home) -> None:
    """Bob's machine, with all that it knows and with ann's identities, at ann's gateway."""
    right = {**ATTRIBUTIONS[1], ann.header: owner_identity(ann.machine_id)}
    assert dict(http_answers(ann.gateway, right))["/tools/invoke"] == 200, "or the rest shows nothing"
    assert greeted(ann.gateway, right)
    identities = [
        owner_identity(ann.machine_id),
        service_identity(ann.machine_id),
        controller_identity(ann.machine_id),
        owner_identity(bob.machine_id),
        service_identity(bob.machine_id),
        ANN,
        BOB,
    ]
    secrets = [bob.model_token, bob.controller_token, ann.model_token]
    for headers in attempts(identities, secrets, [bob.header]):
        for path, status in http_answers(ann.gateway, headers):
            assert status in REFUSED, (path, headers)
        assert greeted(ann.gateway, headers) == [], headers
    for secret in secrets:
        for auth in ({"token": secret}, {"password": secret}):
            assert greeted(ann.gateway, {}, auth=auth) == []


def test_no_header_makes_an_impostor_an_owner(homes: tuple[Home, Home]) -> None:
    no_impostor_gets_in(*homes)


def test_a_machines_secrets_open_nothing_else(homes: tuple[Home, Home]) -> None:
    ann, bob = homes
    headers = {"authorization": f"Bearer {bob.controller_token}"}
    assert httpx.get(f"{bob.controller}/v1/state", headers=headers, trust_env=False).status_code == 200
    for path in ("/v1/state", "/v1/logs"):
        assert httpx.get(f"{ann.controller}{path}", headers=headers, trust_env=False).status_code == 401
    stop = httpx.post(f"{ann.controller}/v1/stop", json={}, headers=headers, trust_env=False)
    assert stop.status_code == 401

    token = bob.model_token
    for path in ("/v1/status", "/v1/sessions", "/v1/devices"):
        plain = ann.stack.caller(port=1, authorization=f"Bearer {token}")
        refusal(plain.request("GET", path), 401, "unauthorized")
        for tenant in (tenant_key(ANN), tenant_key(BOB)):
            named = ann.stack.caller(port=1, x_openagents_service_token=token, x_oa_tenant_key=tenant)
            refusal(named.request("GET", path), 401, "unauthorized")
    refusal(ann.stack.caller(authorization=f"Bearer {token}").request("GET", "/api/me"), 401)


def test_a_service_token_is_good_for_its_tenant_only(homes: tuple[Home, Home]) -> None:
    ann, bob = homes
    key = bytes.fromhex(ann.stack.key("runtime-service"))
    ours, theirs = (runtime_service_token(key, tenant_key(user)) for user in (BOB, ANN))
    for token, tenant in (
        (ours, tenant_key(ANN)),
        (theirs, tenant_key(BOB)),
        (ours, ""),
        ("", tenant_key(ANN)),
        (ours, "*"),
    ):
        caller = ann.stack.caller(port=1, x_openagents_service_token=token, x_oa_tenant_key=tenant)
        refusal(caller.request("GET", "/v1/status"), 401, "unauthorized")
        refusal(caller.request("POST", "/v1/gateway/restart", json={}), 401, "unauthorized")
    elsewhere = bob.stack.runtime(BOB, x_oa_instance_id=ann.instance_id)
    refusal(elsewhere.request("GET", "/v1/status"), 404, "instance_unknown")
    assert bob.stack.runtime(BOB).get("/v1/status")["instance_id"] == bob.instance_id
    assert ann.site.instance()["status"] == "ready"


def test_a_model_token_dies_with_its_machine(homes: tuple[Home, Home]) -> None:
    _, bob = homes
    token = bob.model_token
    assert bob.models(token) == 200
    bob.site.wish("stop")
    eventually(lambda: bob.models(token) == 401, 10)
    bob.site.wish("restart")
    assert bob.models(bob.model_token) == 200
    assert bob.models(token) == 401, "the token of a machine that was replaced"


@pytest.mark.real
def test_the_real_gateway_lets_no_impostor_in() -> None:
    with whole_stack("one", **_REAL) as stack:
        ann, bob = settle_in(stack)
        no_impostor_gets_in(ann, bob)
        if os.getuid() == 0:
            nothing_to_read(ann, bob)
        for home in (ann, bob):
            home.site.wish("delete")


def nothing_to_read(ann: Home, bob: Home) -> None:
    """Bob's user of this host at ann's files and processes."""
    uids = [psutil.Process(home.record["gateway_pid"]).uids().real for home in (ann, bob)]
    assert len({0, *uids}) == 3
    root = ann.stack.root_of(ann.instance_id)
    places = [root / "state" / "openclaw.json", root / "controller.json", root / "logs" / "gateway.log"]
    places += [f"/proc/{pid}/environ" for pid in (ann.record["pid"], ann.record["gateway_pid"])]
    for place in (*places, ann.stack.directory / "root.key"):
        done = subprocess.run(["cat", str(place)], user=uids[1], group=uids[1], extra_groups=[], capture_output=True)
        assert done.returncode != 0, place
        assert done.stdout == b"", place
