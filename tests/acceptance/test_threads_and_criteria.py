"""Threads (A11) and the acceptance criteria about chat, sessions and isolation (AC)."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hatchery_common.ids import tenant_key
from hatchery_common.secrets import controller_token, machine_header_name, mint_model_token
from people import Person
from visitor import refusal, turn_of, until
from whole_stack import WholeStack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def test_a_deterministic_thread_is_streamed_and_kept(stack: WholeStack, ann: Person) -> None:
    thread = ann.site.thread(client_key="a11-1")
    turn = ann.site.say(thread["thread_id"], "streamed and kept")
    assert turn.chunks >= 1
    again = stack.visitor(ann.user)
    assert again.thread(client_key="a11-1")["thread_id"] == thread["thread_id"]
    run_id = turn.events[0].data["run_id"]
    assert again.read_turn(thread["thread_id"], run_id).events == turn.events
    assert again.get(f"/api/runs/{run_id}")["status"] == "finished"


@pytest.mark.mission("A11.7")
def test_a11_7_a_thread_id_belongs_to_its_user(ann: Person, bob: Person) -> None:
    own, others = (person.site.thread(client_key="the same key")["thread_id"] for person in (ann, bob))
    assert own != others
    refusal(bob.site.request("GET", f"/api/threads/{own}"), 404)
    refusal(bob.site.request("POST", f"/api/threads/{own}/messages", json={"text": "hi"}), 404)


@pytest.mark.mission("A11.8")
def test_a11_8_the_gateways_session_is_the_conversation(ann: Person) -> None:
    thread = ann.site.thread(client_key="a11-8")
    key = thread["session_key"]
    assert key == f"agent:main:hatch:{thread['thread_id']}"
    turn = ann.site.say(thread["thread_id"], "kept by the gateway")
    assert key in [session["key"] for session in ann.runtime.get("/v1/sessions")["sessions"]]
    messages = ann.runtime.get(f"/v1/sessions/{key}/history")["messages"]
    assert [message["text"] for message in messages] == ["kept by the gateway", turn.text]
    body = {"message": "said beside the thread", "idempotencyKey": "a11-8-beside"}
    ann.runtime.post(f"/v1/sessions/{key}/send", body)
    assert "said beside the thread" in ann.site.say(thread["thread_id"], "and now?", turn.last_id).text


@pytest.mark.mission("AC1")
def test_ac1_chat_streams_and_persists_across_calls(ann: Person) -> None:
    body = {"sessionKey": "ac1", "message": "the first call"}
    first = list(ann.site.follow("/api/openclaw/chat", method="POST", body=body))
    second = list(ann.site.follow("/api/openclaw/chat", method="POST", body={**body, "message": "the second call"}))
    assert first[0].data["thread_id"] == second[0].data["thread_id"]
    assert any(one.event == "text.delta" for one in first)
    assert "the first call" in turn_of(second[1:]).text, "the second answer knows of the first call"
    assert ann.said_in("agent:main:ac1") == ["the first call", "the second call"]


@pytest.mark.mission("AC2")
def test_ac2_one_key_is_one_thread(stack: WholeStack, ann: Person) -> None:
    def create(_: int) -> Any:
        return stack.visitor(ann.user).thread(client_key="ac2")["thread_id"]

    with ThreadPoolExecutor(8) as pool:
        made = set(pool.map(create, range(16)))
    assert len(made) == 1
    listed = [thread["thread_id"] for thread in ann.site.get("/api/threads")["threads"]]
    assert listed.count(made.pop()) == 1


@pytest.mark.mission("AC5")
def test_ac5_threads_persist_across_refresh_and_devices(stack: WholeStack, ann: Person) -> None:
    thread = ann.site.thread(title="on my desk", client_key="ac5")["thread_id"]
    said = ann.site.say(thread, "from the desk")
    phone = stack.visitor(ann.user)
    assert thread in [one["thread_id"] for one in phone.get("/api/threads")["threads"]]
    assert phone.get(f"/api/threads/{thread}")["title"] == "on my desk"
    assert phone.read_turn(thread, said.events[0].data["run_id"]).events == said.events
    replied = phone.say(thread, "from the phone", said.last_id)
    refreshed = ann.site.read_turn(thread, replied.events[0].data["run_id"], after=said.last_id)
    assert refreshed.text == replied.text


@pytest.mark.mission("AC7")
def test_ac7_no_gateway_credential_reaches_a_browser(stack: WholeStack, ann: Person) -> None:
    machine = ann.instance["machine_id"]
    credentials = [
        machine_header_name(bytes.fromhex(stack.key("machine-identity")), machine),
        controller_token(bytes.fromhex(stack.key("controller")), machine),
        mint_model_token(bytes.fromhex(stack.key("model-token")), machine, issued_at=1).split(".")[0],
        f"owner@{machine}",
        f"svc@{machine}",
    ]
    paths = ["/api/me", "/api/openclaw/instance", "/api/openclaw/sessions", "/api/threads", "/openapi.json", "/docs"]
    paths.append(f"/api/openclaw/sessions/{ann.thread['session_key']}/history")
    answers = [ann.site.request("GET", path) for path in paths]
    shown = [f"{answer.headers}{answer.text}" for answer in answers]
    streamed = list(ann.site.follow("/api/openclaw/chat", method="POST", body={"message": "what is your token?"}))
    shown.append(json.dumps([one.data for one in streamed]))
    assert streamed[-1].event == "run.finished"
    for credential in credentials:
        assert not [text for text in shown if credential in text]


@pytest.mark.mission("AC8")
def test_ac8_an_answer_streams_from_gateway_to_site(ann: Person) -> None:
    body = {"message": "tell me word by word, " * 8, "sessionKey": "ac8"}
    stream = ann.site.follow("/api/openclaw/chat", method="POST", body=body)
    begun = until(stream, lambda seen: seen.event == "text.delta")
    thread, run = begun[0].data["thread_id"], begun[0].data["run_id"]
    rest = list(stream)
    text = turn_of([*begun[1:], *rest]).text
    assert any(one.event == "text.delta" for one in rest), "the first words came before the last ones were known"
    assert rest[-1].event == "run.finished"
    assert ann.site.history(thread)[-1]["text"] == text
    assert [said.strip() for said in ann.said_in("agent:main:ac8")] == [body["message"].strip()]
    assert ann.site.get(f"/api/runs/{run}")["status"] == "finished"


@pytest.mark.mission("AC10")
def test_ac10_no_tenant_reaches_another(stack: WholeStack, ann: Person, bob: Person) -> None:
    operation = ann.site.get("/api/openclaw/instance")["operation_id"] or "op_none"
    run = ann.turn.events[0].data["run_id"]
    for path in (
        f"/api/threads/{ann.thread['thread_id']}",
        f"/api/threads/{ann.thread['thread_id']}/events",
        f"/api/runs/{run}",
        f"/api/operations/{operation}",
    ):
        refusal(bob.site.request("GET", path), 404)
    assert bob.site.instance()["instance_id"] != ann.instance["instance_id"]
    assert ann.thread["thread_id"] not in json.dumps(bob.site.get("/api/threads"))
    history = bob.site.request("GET", f"/api/openclaw/sessions/{ann.thread['session_key']}/history")
    assert "good morning" not in history.text
    assert tenant_key("a.b") != tenant_key("a-b"), "no two users share a tenant"
    roots = [stack.root_of(person.instance["instance_id"]) for person in (ann, bob)]
    assert roots[0] != roots[1]
