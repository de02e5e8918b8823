"""Threads, chat, and reading a log from any place."""

from __future__ import annotations

import asyncio
import json

import pytest
from hatchery_api.domain.threads import Resume, canonical_session_key, fold, resume
from hatchery_common.bus.errors import BusUnavailable, RemoteError
from hatchery_common.contracts.instances import InstanceDeleted, InstanceStatus
from hatchery_common.contracts.threads import PostMessage, ThreadEntry, ThreadEntryType

ME = {"X-OA-Internal-Key": "oa-internal-key-0123456789", "X-OA-User-Id": "ada"}
OTHER = {**ME, "X-OA-User-Id": "bea"}


def frames(text):
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":"))
        if "event" in fields:
            number = int(fields["id"]) if "id" in fields else None
            found.append((number, fields["event"], json.loads(fields["data"])))
    return found


@pytest.fixture
async def thread(world):
    await world.client.post("/api/openclaw/instance", headers=ME)
    made = await world.client.post("/api/threads", headers=ME, json={"title": "first"})
    assert made.status_code == 201
    return made.json()["data"]["thread_id"]


async def test_threads_need_an_instance_and_belong_to_their_user(world, thread):
    assert (await world.client.post("/api/threads", headers=OTHER)).json()["error_detail"]["code"] == "no_instance"
    assert (await world.client.get(f"/api/threads/{thread}", headers=ME)).json()["data"]["title"] == "first"
    assert (await world.client.get("/api/threads", headers=ME)).json()["data"]["threads"][0]["thread_id"] == thread
    assert (await world.client.get("/api/threads", headers=OTHER)).json()["data"]["threads"] == []
    for path in (f"/api/threads/{thread}", f"/api/threads/{thread}/events"):
        assert (await world.client.get(path, headers=OTHER)).status_code == 404
    posted = await world.client.post(f"/api/threads/{thread}/messages", headers=OTHER, json={"text": "hi"})
    assert posted.status_code == 404


async def test_the_same_key_names_the_same_thread(world, thread):
    keyed = [(await world.client.post("/api/threads", headers=ME, json={"client_key": "k"})).json() for _ in range(2)]
    assert keyed[0]["data"]["thread_id"] == keyed[1]["data"]["thread_id"] != thread
    headers = {**ME, "Idempotency-Key": "once"}
    repeated = [(await world.client.post("/api/threads", headers=headers)).json() for _ in range(2)]
    assert repeated[0]["data"]["thread_id"] == repeated[1]["data"]["thread_id"]
    assert (await world.client.post("/api/threads", headers=headers, json={"title": "x"})).status_code == 422


async def test_a_message_is_accepted_once(world, thread):
    headers = {**ME, "Idempotency-Key": "m1"}
    path = f"/api/threads/{thread}/messages"
    first = await world.client.post(path, headers=headers, json={"text": "Guten Tag!"})
    assert first.status_code == 202
    data = first.json()["data"]
    assert (await world.client.post(path, headers=headers, json={"text": "Guten Tag!"})).json()["data"] == data
    assert (await world.client.post(path, headers=headers, json={"text": "ho"})).status_code == 422
    assert [sent_id for sent_id, _ in posts(world)] == [data["run_id"]]
    assert "Guten Tag!" not in posts(world)[0][1].model_dump_json().replace(thread, "")
    assert len(world.calls.submitted) == 1
    assert (await world.client.get(f"/api/runs/{data['run_id']}", headers=ME)).json()["data"]["status"] == "queued"
    assert (await world.client.get(f"/api/runs/{data['run_id']}", headers=OTHER)).status_code == 404


async def test_a_key_does_not_name_a_thread_of_another_instance(world, thread):
    await world.client.post("/api/openclaw/instance", headers=ME, json={"name": "work"})
    made = (await world.client.post("/api/threads", headers=ME, json={"client_key": "k"})).json()["data"]
    there = {"client_key": "k", "instance": "work"}
    session = {"message": "hi", "sessionKey": made["session_key"], "instance": "work"}
    for path, body in (("/api/threads", there), ("/api/openclaw/chat", session)):
        answer = await world.client.post(path, headers=ME, json=body)
        assert (answer.status_code, answer.json()["error_detail"]["code"]) == (409, "thread_elsewhere")
        assert "on the instance default" in answer.json()["error"]
        assert answer.json()["error_detail"]["hint"]
    assert world.calls.threads[made["thread_id"]][1].instance_id == made["instance_id"]


async def test_a_thread_moves_from_an_instance_that_is_gone(world, provisioned, thread):
    events, _ = provisioned
    first = (await world.client.post("/api/threads", headers=ME, json={"client_key": "k"})).json()["data"]
    await events.status(InstanceDeleted, InstanceStatus.DELETED, version=9)
    renewed = (await world.client.post("/api/openclaw/instance", headers=ME)).json()["data"]["instance_id"]
    session = {"message": "hi", "sessionKey": first["session_key"]}
    answer = await world.client.post("/api/openclaw/chat", headers=ME, json=session)
    assert (answer.status_code, answer.json()["error_detail"]["code"]) == (409, "thread_elsewhere")
    moved = (await world.client.post("/api/threads", headers=ME, json={"client_key": "k"})).json()["data"]
    assert (moved["thread_id"], moved["instance_id"]) == (first["thread_id"], renewed)
    assert renewed != first["instance_id"]
    assert (await world.client.post("/api/openclaw/chat", headers=ME, json=session)).status_code == 200


def posts(world):
    return [(sent_id, one) for sent_id, one in world.store.sent if isinstance(one, PostMessage)]


async def test_equal_requests_at_once_are_one_message(world, thread):
    headers, path = {**ME, "Idempotency-Key": "m2"}, f"/api/threads/{thread}/messages"
    both = (world.client.post(path, headers=headers, json={"text": "hi"}) for _ in range(2))
    answers = await asyncio.gather(*both)
    assert [answer.status_code for answer in answers] == [202, 202]
    assert answers[0].json()["data"] == answers[1].json()["data"]
    assert {one.run_id for one in world.calls.submitted} == {answers[0].json()["data"]["run_id"]}
    assert len(posts(world)) == 1


@pytest.mark.parametrize("how", ["never asked", "answer lost"])
async def test_a_repeat_after_a_failure_on_the_way_is_the_same_message(world, thread, how):
    headers, path = {**ME, "Idempotency-Key": "m3"}, f"/api/threads/{thread}/messages"
    away = BusUnavailable("nobody answers")
    world.calls.fail, world.calls.lost = (away, None) if how == "never asked" else (None, away)
    assert (await world.client.post(path, headers=headers, json={"text": "hi"})).status_code == 503
    begun = [one.run_id for one in world.calls.submitted]
    world.calls.fail = world.calls.lost = None
    assert (await world.client.post(path, headers=headers, json={"text": "other"})).status_code == 422
    data = (await world.client.post(path, headers=headers, json={"text": "hi"})).json()["data"]
    assert [one.run_id for one in world.calls.submitted] == [data["run_id"]] == (begun or [data["run_id"]])
    assert [sent_id for sent_id, _ in posts(world)] == [data["run_id"]]


async def test_a_log_is_read_from_any_place(world, thread):
    await world.client.post(f"/api/threads/{thread}/messages", headers=ME, json={"text": "hi"})
    path = f"/api/threads/{thread}/events"
    whole = frames((await world.client.get(path, headers=ME)).text)
    assert [kind for _, kind, _ in whole] == ["message.user", "text.delta", "message.assistant", "run.finished"]
    for place in range(4):
        rest = frames((await world.client.get(path, headers={**ME, "Last-Event-ID": str(whole[place][0])})).text)
        assert rest == whole[place + 1 :]
    for wrong, reason in (("999999", "beyond_end"), ("1", "before_first"), ("x", "unreadable")):
        answer = frames((await world.client.get(path, headers={**ME, "Last-Event-ID": wrong})).text)
        assert [(number, kind) for number, kind, _ in answer] == [(whole[-1][0], "reset")]
        data = answer[0][2]
        assert data["reason"] == reason
        assert [(one["role"], one["text"]) for one in data["messages"]] == [("user", "hi"), ("assistant", "hello you")]


async def test_chat_streams_its_own_run_to_the_end(world, thread):
    await world.client.post(f"/api/threads/{thread}/messages", headers=ME, json={"text": "before"})
    answer = await world.client.post("/api/openclaw/chat", headers=ME, json={"message": "hi", "threadId": thread})
    assert answer.headers["content-type"].startswith("text/event-stream")
    run_id = answer.headers["x-hatchery-run-id"]
    told = frames(answer.text)
    assert told[0][1:] == ("accepted", {"thread_id": thread, "run_id": run_id, "message_id": told[0][2]["message_id"]})
    assert [kind for _, kind, _ in told[1:]] == ["message.user", "text.delta", "message.assistant", "run.finished"]
    assert {data["run_id"] for _, _, data in told[1:]} == {run_id}


async def test_chat_without_a_thread_has_one_and_a_session_has_its_own(world, thread):
    async def chat(**body):
        answer = await world.client.post("/api/openclaw/chat", headers=ME, json={"message": "hi", **body})
        assert answer.status_code == 200
        return answer.headers["x-hatchery-thread-id"]

    default = await chat()
    assert await chat() == default != thread
    assert await chat(sessionKey=f"agent:main:hatch:{thread}") == thread
    for key in ("agent:main:whatsapp:+49", "other"):
        named = await chat(sessionKey=key)
        assert await chat(sessionKey=key.upper()) == named not in (default, thread)
        made = (await world.client.get(f"/api/threads/{named}", headers=ME)).json()["data"]
        assert made["session_key"] == f"agent:main:{key.removeprefix('agent:main:')}"


async def test_a_session_is_found_however_many_threads_were_used_since(world, thread):
    for number in range(205):
        world.calls.threads[f"thd_{number}"] = world.calls.threads[thread]
    world.calls.threads[thread] = world.calls.threads.pop(thread)  # listed last: the one not used for longest
    body = {"message": "hi", "sessionKey": f"agent:main:hatch:{thread}"}
    answer = await world.client.post("/api/openclaw/chat", headers=ME, json=body)
    assert answer.headers["x-hatchery-thread-id"] == thread


@pytest.mark.parametrize(
    "key",
    ["a b", "agent:main", "agent::x", "agent:main:", "x\n", "a\u200bb", "a\u202ab", "a\u00adb", "\u0130" * 150],
)
async def test_what_is_no_session_key_is_refused(world, thread, key):
    answer = await world.client.post("/api/openclaw/chat", headers=ME, json={"message": "hi", "sessionKey": key})
    assert (answer.status_code, answer.json()["error_detail"]["code"]) == (422, "invalid_input")
    assert len(world.calls.threads) == 1


def test_a_session_key_is_written_as_openclaw_files_it():
    keys = {
        "Main": "agent:main:main",
        "agent:Main:X": "agent:main:x",
        "Signal:group:aB=": "agent:main:Signal:group:aB=",
    }
    assert {key: canonical_session_key(key) for key in keys} == keys


async def test_a_repeated_chat_reads_the_same_run(world, thread):
    headers = {**ME, "Idempotency-Key": "c1"}
    body = {"message": "hi", "threadId": thread}
    first = await world.client.post("/api/openclaw/chat", headers=headers, json=body)
    again = await world.client.post("/api/openclaw/chat", headers=headers, json=body)
    assert frames(first.text) == frames(again.text)


async def test_a_repeated_chat_reads_a_run_that_ended_before_it_was_posted(world, thread):
    request = {"headers": {**ME, "Idempotency-Key": "c2"}, "json": {"message": "hi", "threadId": thread}}
    world.calls.lost = BusUnavailable("the answer is lost")
    assert (await world.client.post("/api/openclaw/chat", **request)).status_code == 503
    world.calls.lost = None
    told = frames((await world.client.post("/api/openclaw/chat", **request)).text)
    kinds = ["accepted", "message.user", "text.delta", "message.assistant", "run.finished"]
    assert [kind for _, kind, _ in told] == kinds


@pytest.mark.parametrize("path", ["/api/threads/{}/messages", "/api/openclaw/chat"])
async def test_a_repeat_of_a_message_that_expired_is_told_so(world, thread, path):
    body = {"text": "hi"} if "{}" in path else {"message": "hi", "threadId": thread}
    request = {"headers": {**ME, "Idempotency-Key": "c3"}, "json": body}
    world.calls.lost = BusUnavailable("the answer is lost")
    assert (await world.client.post(path.format(thread), **request)).status_code == 503
    world.calls.lost = RemoteError("message_expired", "it was never posted", hint="use another key")
    for _ in range(2):
        answer = await world.client.post(path.format(thread), **request)
        assert (answer.status_code, answer.json()["error_detail"]["code"]) == (409, "message_expired")
    assert posts(world) == []


def entry(kind, run="run_1", attempt=1, **data):
    return ThreadEntry(id="e", type=kind, thread_id="t", at_ms=1, run_id=run, attempt=attempt, data=data)


def test_only_the_last_attempts_text_counts():
    delta, done = ThreadEntryType.TEXT_DELTA, ThreadEntryType.RUN_FAILED
    log = [entry(delta, text="a"), entry(delta, text="b"), entry(delta, attempt=2, text="c"), entry(delta, text="late")]
    snapshot = fold(enumerate([*log, entry(done, attempt=2, code="interrupted", message="gone")], 1))
    assert [message.text for message in snapshot.messages] == ["c"]
    assert (snapshot.runs["run_1"].status, snapshot.runs["run_1"].error, snapshot.sequence) == ("failed", "gone", 5)


def test_a_later_attempt_begins_anew_and_the_first_end_counts():
    started, delta = ThreadEntryType.RUN_STARTED, ThreadEntryType.TEXT_DELTA
    log = [entry(started), entry(delta, text="half an ans"), entry(started, attempt=2)]
    assert fold(enumerate(log, 1)).messages == []
    whole = entry(ThreadEntryType.MESSAGE_ASSISTANT, attempt=2, text="answer")
    log += [whole, entry(ThreadEntryType.RUN_FINISHED, attempt=2), entry(ThreadEntryType.RUN_FAILED, attempt=3)]
    snapshot = fold(enumerate(log, 1))
    assert [message.text for message in snapshot.messages] == ["answer"]
    assert (snapshot.runs["run_1"].status, snapshot.sequence) == ("finished", 6)


@pytest.mark.parametrize(
    ("given", "how"),
    [
        (None, "from_start"),
        ("0", "from_start"),
        ("9", "before_first"),
        ("10", "after"),
        ("20", "after"),
        ("21", "beyond_end"),
        ("-1", "unreadable"),
        ("\uff11", "unreadable"),
    ],
)
def test_where_a_reader_goes_on(given, how):
    assert resume(given, 10, 20)[0] == Resume(how)
