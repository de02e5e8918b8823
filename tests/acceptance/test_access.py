"""Who gets in: the website's tokens (A5), and servers that act for a user (A11.2)."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from people import Person, new_user
from visitor import Visitor, refusal
from whole_stack import WholeStack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.mark.mission("A5.2")
def test_a5_2_only_the_websites_tokens_count(stack: WholeStack) -> None:
    user, now = new_user(), int(time.time())
    assert stack.visitor(user).get("/api/me")["user_id"] == user
    assert stack.caller(cookie=f"hatchery_session={stack.token(user)}").get("/api/me")["user_id"] == user
    for why, token in {
        "another secret": stack.token(user, secret="x" * 40),
        "no signature": stack.token(user, secret="", algorithm="none"),
        "another algorithm": stack.token(user, algorithm="HS512"),
        "expired": stack.token(user, exp=now - 60),
        "never expires": stack.token(user, exp=None),
        "another audience": stack.token(user, aud="elsewhere"),
        "another issuer": stack.token(user, iss="elsewhere"),
        "another environment": stack.token(user, env="production"),
        "no environment": stack.token(user, env=None),
        "nobody": stack.token(user, sub=None),
        "not a token": "a.b.c",
    }.items():
        answer = stack.caller(authorization=f"Bearer {token}").request("GET", "/api/me")
        assert refusal(answer, 401, "unauthenticated")["error"].startswith("account getMe authenticate: "), why


@pytest.mark.mission("A5.3")
def test_a5_3_a_new_pepper_revokes_old_tokens(stack: WholeStack) -> None:
    user = new_user()
    old = stack.visitor(user, pepper="pepper-one")
    assert old.get("/api/me")["user_id"] == user
    refusal(stack.visitor(user).request("GET", "/api/me"), 401)
    stack.sql("api", "UPDATE users SET pepper = 'pepper-two' WHERE user_id = $1", user)
    refusal(old.request("GET", "/api/me"), 401, "unauthenticated")
    assert stack.visitor(user, pepper="pepper-two").get("/api/me")["user_id"] == user


@pytest.mark.mission("A11.2")
def test_a11_2_a_server_acts_as_a_user(stack: WholeStack, ann: Person, acting: Callable[[str], Visitor]) -> None:
    server = acting(ann.user)
    assert server.get("/api/me")["via"] == "internal"
    assert server.get("/api/openclaw/instance")["instance_id"] == ann.instance["instance_id"]
    assert server.get(f"/api/threads/{ann.thread['thread_id']}") == ann.site.get(
        f"/api/threads/{ann.thread['thread_id']}"
    )
    stranger = stack.caller(x_oa_internal_key=stack.key("internal-api-key"), x_oa_user_id=ann.user)
    refusal(stranger.request("GET", "/api/me"), 401)
