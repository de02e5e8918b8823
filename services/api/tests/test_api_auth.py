"""Who gets in, and how everyone else is told."""

from __future__ import annotations

import base64
import json
import time
from dataclasses import replace

import pytest
from hatchery_api.settings import ApiSettings
from hatchery_common.contracts.accounts import OpenAccount
from hatchery_common.errors import SetupError
from hatchery_common.settings import load
from pydantic import ValidationError


async def test_a_valid_token_makes_the_user_and_opens_the_account(world):
    answer = await world.client.get("/api/me", headers=world.bearer())
    assert answer.status_code == 200
    assert answer.json()["data"]["user_id"] == "ada"
    assert [type(message) for _, message in world.store.sent] == [OpenAccount]
    await world.client.get("/api/me", headers=world.bearer())
    assert len(world.store.sent) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"secret": "x" * 64},
        {"exp": int(time.time()) - 60},
        {"algorithm": "none"},
        {"algorithm": "HS384"},
        {"aud": "another"},
        {"iss": "another"},
        {"drop": "sub"},
        {"drop": "exp"},
        {"drop": "aud"},
        {"drop": "iss"},
        {"user": ""},
        {"user": "a\x00b"},
        {"pepper": 7},
        {"nbf": int(time.time()) + 600},
    ],
)
async def test_wrong_tokens_are_refused(world, make_token, changes):
    answer = await world.client.get(
        "/api/openclaw/instance", headers={"Authorization": f"Bearer {make_token(**changes)}"}
    )
    assert answer.status_code == 401
    body = answer.json()
    assert body["ok"] is False
    assert body["error"].startswith("openclaw getInstance authenticate: ")
    assert body["error_detail"]["code"] == "unauthenticated"
    assert not world.store.data["users"]


@pytest.mark.parametrize(
    "header", ["Bearer ", "Basic abc", "Bearer not.a.token", "Bearer ..", "Bearer \u00e9.\u00e9.\u00e9"]
)
async def test_unreadable_authorization_is_refused(world, header):
    answer = await world.client.get("/api/me", headers=[(b"authorization", header.encode("latin-1"))])
    assert answer.status_code == 401
    assert answer.json()["ok"] is False


async def test_a_forged_none_header_is_refused(world):
    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    claims = {"sub": "ada", "iss": "hatchery", "aud": "hatchery", "exp": int(time.time()) + 600}
    for algorithm in ("none", "None", "NONE"):
        forged = f"{part({'alg': algorithm, 'typ': 'JWT'})}.{part(claims)}."
        assert (await world.client.get("/api/me", headers={"Authorization": f"Bearer {forged}"})).status_code == 401


async def test_the_environment_must_match_where_it_is_set(open_world):
    async with open_world(jwt_environment="production") as world:
        assert (await world.client.get("/api/me", headers=world.bearer())).status_code == 401
        assert (await world.client.get("/api/me", headers=world.bearer(env="staging"))).status_code == 401
        assert (await world.client.get("/api/me", headers=world.bearer(env="production"))).status_code == 200


async def test_the_pepper_revokes(world):
    assert (await world.client.get("/api/me", headers=world.bearer(pepper="one"))).status_code == 200
    assert (await world.client.get("/api/me", headers=world.bearer(pepper="two"))).status_code == 401
    assert (await world.client.get("/api/me", headers=world.bearer())).status_code == 401
    assert (await world.client.get("/api/me", headers=world.bearer(pepper="one"))).status_code == 200


async def test_a_server_revokes_a_users_tokens(world):
    key = {"x-internal-api-key": "platform-key-0123456789"}
    body = {"userId": "alice", "pepper": "pepper-two"}
    assert (await world.client.post("/api/platform/revoke", json=body, headers=key)).status_code == 404
    assert (await world.client.get("/api/me", headers=world.bearer(sub="alice", pepper="one"))).status_code == 200
    assert (await world.client.post("/api/platform/revoke", json=body)).status_code == 401
    answer = await world.client.post("/api/platform/revoke", json=body, headers=key)
    assert answer.json()["data"] == {"userId": "alice", "revoked": True}
    assert "pepper-two" not in answer.text
    assert (await world.client.get("/api/me", headers=world.bearer(sub="alice", pepper="one"))).status_code == 401
    assert (
        await world.client.get("/api/me", headers=world.bearer(sub="alice", pepper="pepper-two"))
    ).status_code == 200


async def test_the_previous_secret_still_counts_while_it_is_rotated(open_world):
    async with open_world(website_jwt_secret="n" * 64, website_jwt_secret_previous="w" * 64) as world:
        assert (await world.client.get("/api/me", headers=world.bearer())).status_code == 200
        assert (await world.client.get("/api/me", headers=world.bearer(secret="n" * 64))).status_code == 200
        assert (await world.client.get("/api/me", headers=world.bearer(secret="o" * 64))).status_code == 401


async def test_the_waitlist_keeps_the_unknown_out(open_world):
    async with open_world(access="waitlist") as world:
        answer = await world.client.post("/api/openclaw/instance", headers=world.bearer())
        assert answer.status_code == 403
        assert answer.json()["error_detail"]["code"] == "access_required"
        assert not world.store.sent


async def test_a_server_acts_as_a_user(world):
    headers = {"X-OA-Internal-Key": "oa-internal-key-0123456789", "X-OA-User-Id": "bea"}
    answer = await world.client.get("/openclaw/instance", headers=headers)
    assert answer.json() == {"ok": True, "data": None}
    for wrong in (
        {"X-OA-User-Id": "bea"},
        {"X-OA-Internal-Key": "wrong", "X-OA-User-Id": "bea"},
        {"X-OA-Internal-Key": headers["X-OA-Internal-Key"]},
    ):
        assert (await world.client.get("/openclaw/instance", headers=wrong)).status_code == 401


async def test_a_server_names_the_same_user_as_the_users_token(world):
    tenant = (await world.client.get("/api/me", headers=world.bearer("jürgen@中.example"))).json()["data"]["tenant"]
    key = (b"X-OA-Internal-Key", b"oa-internal-key-0123456789")
    named = [key, (b"X-OA-User-Id", "jürgen@中.example".encode())]
    assert (await world.client.get("/api/me", headers=named)).json()["data"]["tenant"] == tenant
    for wrong in ("jürgen".encode("latin-1"), b"\xff"):
        answer = await world.client.get("/api/me", headers=[key, (b"X-OA-User-Id", wrong)])
        assert (answer.status_code, answer.json()["error_detail"]["code"]) == (401, "unauthenticated")
        assert "UTF-8" in answer.json()["error_detail"]["hint"]
    assert len(world.store.data["users"]) == 1


async def test_base64_of_a_known_user_is_that_user(world):
    key = {"x-internal-api-key": "platform-key-0123456789"}
    made = await world.client.post("/api/platform/provision", headers=key, json={"userId": "bea@site"})
    encoded = base64.b64encode(b"bea@site").decode()
    found = await world.client.get("/api/platform/status", headers=key, params={"userId": encoded})
    assert found.json()["data"]["instance_id"] == made.json()["data"]["instance_id"]
    assert found.json()["data"]["userId"] == "bea@site"


async def test_two_keys_are_accepted_while_one_is_rotated(open_world):
    async with open_world(
        internal_api_key="new-key-0123456789", internal_api_key_previous="old-key-0123456789"
    ) as world:
        for key, status in (("new-key-0123456789", 200), ("old-key-0123456789", 200), ("no-key", 401), ("", 401)):
            headers = {"x-internal-api-key": key}
            found = await world.client.get("/api/platform/status", headers=headers, params={"userId": "u"})
            assert found.status_code == status


async def test_cookies_change_things_only_from_our_own_pages(world, make_token):
    world.client.cookies.set("hatchery_session", make_token())
    assert (await world.client.get("/api/me")).status_code == 200
    for origin, status in ((None, 403), ("https://evil.example", 403), ("null", 403), ("http://test", 202)):
        headers = {"Origin": origin} if origin else {}
        answer = await world.client.post("/api/openclaw/instance", headers=headers)
        assert answer.status_code == status
        assert answer.json()["ok"] is (status == 202)


async def test_dev_mode_is_for_this_machine_only(open_world, make_settings):
    async with open_world(dev_mode=True, dev_user="dev", public_url=None) as world:
        assert (await world.client.get("http://localhost:8800/api/me")).json()["data"]["via"] == "dev"
        assert (await world.client.get("http://rebound.example/api/me")).status_code == 403
        foreign = {"Origin": "https://evil.example"}
        assert (await world.client.post("http://localhost/api/openclaw/instance", headers=foreign)).status_code == 403
    with pytest.raises(ValidationError, match="loopback only"):
        make_settings(dev_mode=True, dev_user="dev", host="0.0.0.0")
    with pytest.raises(ValidationError, match="HATCHERY_API_DEV_USER"):
        make_settings(dev_mode=True)


def test_the_seeds_names_of_secrets_count():
    environment = {
        "NEXTAUTH_SECRET": "n" * 64,
        "KILOCLAW_INTERNAL_API_SECRET": "i" * 32,
        "OA_INTERNAL_KEY": "o" * 32,
        "WORKER_ENV": "production",
        "HATCHERY_KEY_RUNTIME_SERVICE": "cd" * 32,
        "HATCHERY_KEY_WEBSITE_JWT": "ef" * 32,
    }
    chosen = load(ApiSettings, environment)
    assert chosen.website_jwt_secret == "n" * 64
    assert chosen.internal_api_key == "i" * 32
    assert chosen.jwt_environment == "production"
    assert "nnnn" not in repr(chosen)
    del environment["OA_INTERNAL_KEY"]
    with pytest.raises(SetupError, match="OA_INTERNAL_KEY"):
        load(ApiSettings, environment)


async def test_access_that_was_withdrawn_ends_at_once(world):
    assert (await world.client.get("/api/me", headers=world.bearer())).status_code == 200
    users = world.store.data["users"]
    users["ada"] = replace(users["ada"], access_enabled=False)
    answer = await world.client.get("/api/me", headers=world.bearer())
    assert (answer.status_code, answer.json()["error_detail"]["code"]) == (403, "access_required")


async def test_who_acts_is_named_exactly(world):
    """Somebody whose id is the base64 of another's must not act as that other."""
    internal = {"X-OA-Internal-Key": "oa-internal-key-0123456789"}
    made = await world.client.post("/api/openclaw/instance", headers={**internal, "X-OA-User-Id": "alice"})
    assert made.status_code == 202
    twin = base64.b64encode(b"alice").decode()
    seen = await world.client.get("/api/openclaw/instance", headers={**internal, "X-OA-User-Id": twin})
    assert seen.json() == {"ok": True, "data": None}
    key = {"x-internal-api-key": "platform-key-0123456789"}
    twins = base64.b64encode(b"alice2").decode()
    await world.client.post("/api/platform/provision", headers=key, json={"userId": "alice2"})
    gone = await world.client.post("/api/platform/destroy", headers=key, json={"userId": twins})
    assert gone.status_code == 404
