"""The pure part: table, deadlines, usage, demo, transcripts."""

from __future__ import annotations

import json

import pytest
from hatchery_common.contracts.routes import Route, RouteState
from hatchery_runtime_proxy.domain import demo
from hatchery_runtime_proxy.domain.deadlines import Due, StreamLimits, Watchdog
from hatchery_runtime_proxy.domain.table import RouteTable, UnknownInstance
from hatchery_runtime_proxy.domain.transcripts import Ending, find_turn
from hatchery_runtime_proxy.domain.usage import AnswerScanner, Tokens, read_tokens


def route(instance_id: str = "ins_a", version: int = 1, **fields) -> Route:
    given = {"tenant": "ta", "state": RouteState.RUNNING, "machine_id": f"mch_{instance_id}", "changed_at_ms": 1}
    return Route(instance_id=instance_id, route_version=version, **{**given, **fields})


def test_a_lower_or_equal_version_is_ignored() -> None:
    table = RouteTable()
    assert table.apply(route(version=2))
    assert not table.apply(route(version=1, state=RouteState.STOPPED))
    assert not table.apply(route(version=2, state=RouteState.STOPPED))
    assert table.find("ta").state is RouteState.RUNNING


def test_a_refresh_forgets_what_is_gone_but_not_what_came_meanwhile() -> None:
    table = RouteTable()
    table.apply(route("ins_old"))
    mark = table.mark()
    table.apply(route("ins_new"))
    table.refresh([route("ins_kept")], mark, now=5.0)
    assert (table.of_instance("ins_old"), table.refreshed_at) == (None, 5.0)
    assert table.of_instance("ins_new")
    assert table.of_instance("ins_kept")


def test_instances_are_found_by_tenant() -> None:
    table = RouteTable()
    table.apply(route("ins_a", name="second"))
    table.apply(route("ins_b", name="default"))
    table.apply(route("ins_c", tenant="tb"))
    assert table.find("ta").instance_id == "ins_b"
    assert table.find("ta", "ins_a").instance_id == "ins_a"
    for tenant, instance in (("ta", "ins_c"), ("ta", "ins_nope"), ("tz", None)):
        with pytest.raises(UnknownInstance):
            table.find(tenant, instance)
    table.apply(route("ins_c", 2, tenant="tb", state=RouteState.GONE))
    with pytest.raises(UnknownInstance):
        table.find("tb")


@pytest.mark.parametrize("state", list(RouteState))
def test_a_machine_is_known_while_its_route_is_open(state: RouteState) -> None:
    table = RouteTable()
    table.apply(route("ins_a", state=state))
    assert (table.of_machine("mch_ins_a") is not None) == (state in (RouteState.STARTING, RouteState.RUNNING))


def test_a_watchdog_asks_for_a_status_and_then_gives_up() -> None:
    watchdog = Watchdog(StreamLimits(status_s=1, keepalive_s=5, first_byte_s=8, idle_s=20), now=0)
    assert (watchdog.wait_s(0), watchdog.due(0.9), watchdog.due(1)) == (1, None, Due.STATUS)
    watchdog.told(1)
    assert (watchdog.due(5.9), watchdog.due(6), watchdog.due(8)) == (None, Due.STATUS, Due.FIRST_BYTE)
    watchdog.heard(7)
    assert (watchdog.due(11.9), watchdog.due(12), watchdog.due(27)) == (None, Due.STATUS, Due.IDLE)


STREAM = (
    b': ping\r\n\r\ndata: {"choices":[{"delta":{"content":"h\xc3\xa9"}}]}\r\n\r\n'
    b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":10,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":4}}}\n\n'
    b"data: [DONE]\n\n"
)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 31, 1000])
def test_usage_is_read_wherever_the_stream_is_cut(size: int) -> None:
    scanner = AnswerScanner(streamed=True)
    for start in range(0, len(STREAM), size):
        scanner.feed(STREAM[start : start + size])
    scanner.end()
    assert (scanner.tokens, scanner.complete, scanner.error) == (Tokens(10, 3, 4), True, None)


def test_a_broken_stream_is_not_complete() -> None:
    scanner = AnswerScanner(streamed=True)
    scanner.feed(STREAM[:60])
    scanner.end()
    assert (scanner.tokens, scanner.complete) == (None, False)
    scanner = AnswerScanner(streamed=True)
    scanner.feed(b'data: {"error":{"message":"overloaded"}}\n\n')
    assert scanner.error == "overloaded"


def test_usage_of_a_whole_answer_and_of_nonsense() -> None:
    scanner = AnswerScanner(streamed=False)
    scanner.feed(json.dumps({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 1}}).encode())
    scanner.end()
    assert (scanner.tokens, scanner.complete) == (Tokens(5, 1), True)
    assert not scanner.unreadable


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": "many", "completion_tokens": 3},
        {"prompt_tokens": 5, "completion_tokens": -3},
        {"prompt_tokens": 5},
        {"prompt_tokens": 5.0, "completion_tokens": 3},
        {"prompt_tokens": True, "completion_tokens": 3},
        {"input_tokens": 5, "output_tokens": 3},
        ["5", "3"],
        "5 and 3",
    ],
)
def test_counts_that_cannot_be_read_are_unknown_and_not_nothing(usage: object) -> None:
    scanner = AnswerScanner(streamed=True)
    scanner.feed(b"data: %s\n\ndata: [DONE]\n\n" % json.dumps({"choices": [], "usage": usage}).encode())
    assert (scanner.tokens, scanner.unreadable, scanner.complete) == (None, True, True)


def test_a_cache_that_cannot_be_read_counts_as_unused() -> None:
    for details in (None, 5, {}, {"cached_tokens": "all"}, {"cached_tokens": -1}):
        usage = {"prompt_tokens": 5, "completion_tokens": 3, "prompt_tokens_details": details}
        assert read_tokens(usage) == Tokens(5, 3, 0)


def wrapped(text: str, runtime: str = "") -> dict[str, str]:
    sender = 'Conversation info: ⟦openclaw:ctx⟧\n```json\n{"sender":{"name":"owner"}}\n```\n\n'
    return {"role": "user", "content": f"[Fri 2026-11-20 11:28 UTC] {sender}{text}{runtime}"}


def test_the_demo_model_says_what_it_is_and_what_it_heard() -> None:
    context = "<<<BEGIN_OPENCLAW_INTERNAL_CONTEXT>>>\nx\n<<<END_OPENCLAW_INTERNAL_CONTEXT>>>"
    internal = {"role": "user", "content": [{"type": "text", "text": context}]}
    first = wrapped("hello\nthere", "\n\nRuntime: agent=main | session=agent:main:hatch:t\nrepo=/x")
    system = {"role": "system", "content": "50 KB of prompt"}
    text = demo.reply([system, first, internal])
    assert "demo model" in text
    assert "“hello there”" in text
    assert "first message" in text
    assert "OPENCLAW" not in text
    assert "Runtime:" not in text
    text = demo.reply([system, first, {"role": "assistant", "content": "…"}, wrapped("again"), internal])
    assert "message 2" in text
    assert "“again”" in text
    assert "the one before was: “hello there”" in text
    assert demo.spoken([wrapped("[System] Your previous turn was interrupted")]) == []
    assert "".join(demo.pieces(text)) == text
    assert len(demo.reply([{"role": "user", "content": "x" * 10_000}])) < 600


def test_a_turn_is_found_by_its_key() -> None:
    user = {"role": "user", "content": "q", "idempotencyKey": "k1:user", "__openclaw": {"recordTimestampMs": 5}}
    marks = {"__openclaw": {"runId": "k1"}, "role": "assistant", "usage": {"input": 2, "output": 1, "totalTokens": 3}}
    answer = {**marks, "content": [{"type": "text", "text": "a"}], "stopReason": "stop"}
    assert not find_turn([user], "k2").asked
    asked = find_turn([user], "k1")
    assert (asked.asked, asked.asked_at_ms, asked.ending) == (True, 5, None)
    done = find_turn([user, answer, {**answer, "content": "b"}], "k1")
    assert (done.ending, done.text) == (Ending.ANSWERED, "a\n\nb")
    assert done.usage
    assert done.usage["input_tokens"] == 4
    custom = {"role": "custom", "customType": "run-failed-before-reply", "__openclaw": {"runId": "k1"}}
    for last, ending in (
        ({**answer, "stopReason": "error"}, Ending.FAILED),
        (custom, Ending.FAILED),
        ({**answer, "idempotencyKey": "k1:assistant"}, Ending.ABORTED),
        ({**answer, "stopReason": "toolUse"}, None),
    ):
        assert find_turn([user, answer, last], "k1").ending is ending
    steered = find_turn([{**user, "__openclaw": {"steerTargetRunId": "k0"}}], "k1")
    assert (steered.ending, steered.steered_into) == (Ending.STEERED, "k0")


def test_any_row_of_a_turn_proves_that_it_was_taken() -> None:
    """Only the latest rows are read: of a long turn these are answers, calls of tools and what they returned."""
    call = {"role": "assistant", "stopReason": "toolUse", "__openclaw": {"runId": "k1", "recordTimestampMs": 7}}
    result = {"role": "toolResult", "content": "42", "__openclaw": {"runId": "k1", "recordTimestampMs": 8}}
    for rows, at_ms in (([call, result], 7), ([result], 8), ([result, call], 8)):
        turn = find_turn(rows, "k1")
        assert (turn.asked, turn.asked_at_ms, turn.ending) == (True, at_ms, None)
    said = {**call, "idempotencyKey": "k1:assistant", "__openclaw": {}}
    assert find_turn([said], "k1").asked
    assert not find_turn([call, result, said], "k2").asked


def test_a_deleted_instance_is_known_as_such_to_its_owner_only() -> None:
    table = RouteTable()
    table.apply(route("ins_c", 2, tenant="tb", state=RouteState.GONE))
    with pytest.raises(UnknownInstance) as own:
        table.find("tb", "ins_c")
    assert own.value.context["state"] == "deleted"
    with pytest.raises(UnknownInstance) as foreign:
        table.find("ta", "ins_c")
    assert "state" not in foreign.value.context
