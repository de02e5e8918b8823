"""Bodies that no door can use: refused by a typed error, nothing of them stays, and the next valid request works."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Generator, Iterator
from typing import Any

import httpx
import pytest
from hatchery_common.secrets import controller_token, mint_model_token
from visitor import Visitor
from whole_stack import WholeStack, whole_stack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
ANN = "ann@example.com"
_MIB = 1024 * 1024
_JSON = {"content-type": "application/json"}
MALFORMED: dict[str, bytes] = {
    "not JSON": b"{'message': ",
    "not UTF-8": b'{"message": "\xff\xfe"}',
    "a list": b"[]",
    "null": b"null",
    "a number": b"7",
    "nested too deep": b'{"a":' * 30_000 + b"1" + b"}" * 30_000,
    "a NUL in a text": b'{"message": "\\u0000", "text": "\\u0000", "name": "\\u0000", "tool": "\\u0000", "title": "\\u0000"}',
    "half a surrogate": b'{"message": "\\ud800", "text": "\\ud800", "tool": "\\ud800", "title": "\\ud800"}',
    "a huge number": b'{"deadline_s": 1e999, "name": ' + b"9" * 5_000 + b"}",
    "wrong types": b'{"message": {}, "text": [], "name": 7, "size": 0, "tool": 1, "messages": "", "deadline_s": "x", "title": 1}',
}


@pytest.fixture(scope="module")
def home() -> Generator[tuple[WholeStack, Visitor]]:
    with whole_stack("one") as stack:
        stack.up()
        ann = stack.visitor(ANN)
        ann.wish("provision")
        yield stack, ann


Send = Callable[[bytes | Iterator[bytes]], httpx.Response]


def sender(base: str, path: str, headers: dict[str, str]) -> Send:
    def send(content: bytes | Iterator[bytes]) -> httpx.Response:
        # A connection of its own: a refusal may hang up.
        return httpx.post(base + path, content=content, headers={**_JSON, **headers}, timeout=30, trust_env=False)

    return send


def chunks(size: int) -> Iterator[bytes]:
    """A body whose length nobody declares."""
    for _ in range(size // 65_536 + 1):
        yield b" " * 65_536


def code_of(answer: httpx.Response) -> str:
    """The typed code of a refusal, in the form of its door."""
    body: dict[str, Any] = answer.json()
    if "error_detail" in body:
        assert body["ok"] is False
        return body["error_detail"]["code"]
    return body["error"]["code"]


def refuses_nonsense(send: Send, *, limit: int, malformed: dict[str, bytes] = MALFORMED) -> None:
    for name, content in malformed.items():
        answer = send(content)
        assert 400 <= answer.status_code < 500, (name, answer.status_code, answer.text[:300])
        assert code_of(answer) not in ("", "not_found"), (name, answer.text[:300])
    for content in (b" " * (limit + 1), chunks(limit + 65_536)):
        try:
            answer = send(content)
        except (httpx.WriteError, httpx.RemoteProtocolError, httpx.ReadError):
            continue  # it hung up on the flood before all of it was sent
        assert answer.status_code == 413, answer.text[:300]
        assert code_of(answer) in ("body_too_large", "too_large")


def survives_garbage(port: int) -> None:
    """What is no request is hung up on or refused; never answered by a 5xx, never waited for without end."""
    head = b"POST / HTTP/1.1\r\nHost: x\r\n"
    for raw in (
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",  # somebody speaks TLS
        head + b"x: y\r\n" * 20_000 + b"\r\n",
        head + b"x: " + b"y" * _MIB + b"\r\n\r\n",
        head + b"Content-Length: -1\r\n\r\n",
        head + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\n{}{}",
        head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /" + b"a" * _MIB + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    ):
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
                connection.sendall(raw)
                first = connection.recv(64)
        except (ConnectionResetError, BrokenPipeError):
            continue
        assert first == b"" or first.startswith(b"HTTP/1.1 4"), (raw[:60], first)


@pytest.mark.parametrize("offset", [0, 1, 2], ids=["api", "runtime API", "model gateway"])
def test_no_door_falls_over_garbage(home: tuple[WholeStack, Visitor], offset: int) -> None:
    stack, ann = home
    survives_garbage(stack.port + offset)
    assert ann.instance()["status"] == "ready"
    assert stack.runtime(ANN).get("/v1/status")["gateway"]["state"] == "ready"


def test_the_api_refuses_nonsense(home: tuple[WholeStack, Visitor]) -> None:
    stack, ann = home
    thread = ann.thread()["thread_id"]
    proof = {"authorization": f"Bearer {stack.token(ANN)}"}
    for path in (f"/api/threads/{thread}/messages", "/api/openclaw/chat"):
        refuses_nonsense(sender(stack.url, path, proof), limit=256 * 1024)
    platform = {"x-internal-api-key": stack.key("internal-api-key")}
    refuses_nonsense(sender(stack.url, "/api/platform/provision", platform), limit=256 * 1024)
    bodies = {
        name: content for name, content in MALFORMED.items() if name != "null"
    }  # no body at all makes a thread too
    refuses_nonsense(sender(stack.url, "/api/threads", proof), limit=256 * 1024, malformed=bodies)
    named = {name: MALFORMED[name] for name in ("not JSON", "not UTF-8", "a list", "nested too deep", "wrong types")}
    refuses_nonsense(sender(stack.url, "/api/openclaw/instance", proof), limit=256 * 1024, malformed=named)
    assert [one["name"] for one in ann.get("/api/openclaw/instances")] == ["default"]
    assert [one["thread_id"] for one in ann.get("/api/threads")["threads"]] == [thread]
    assert ann.say(thread, "and now in earnest").end.event == "run.finished"
    assert ann.history(thread)[0]["text"] == "and now in earnest"


def test_the_runtime_api_refuses_nonsense(home: tuple[WholeStack, Visitor]) -> None:
    stack, _ = home
    runtime = stack.runtime(ANN)
    proof = {name: runtime.client.headers[name] for name in ("x-openagents-service-token", "x-oa-tenant-key")}
    for path in ("/v1/tools/invoke", "/v1/sessions/agent:main:nonsense/send"):
        refuses_nonsense(sender(f"http://127.0.0.1:{stack.port + 1}", path, proof), limit=_MIB)
    listed = runtime.post("/v1/tools/invoke", {"tool": "sessions_list", "args": {}})
    assert "agent:main:nonsense" not in json.dumps(listed)


def test_the_model_gateway_refuses_nonsense(home: tuple[WholeStack, Visitor]) -> None:
    stack, ann = home
    token = mint_model_token(bytes.fromhex(stack.key("model-token")), ann.instance()["machine_id"], issued_at=1)
    send = sender(
        f"http://127.0.0.1:{stack.port + 2}", "/llm/v1/chat/completions", {"authorization": f"Bearer {token}"}
    )
    refuses_nonsense(send, limit=20 * _MIB)
    unknown = send(b'{"model": "no-such-model", "messages": [{"role": "user", "content": "hi"}]}')
    assert (unknown.status_code, code_of(unknown)) == (404, "model_unknown")
    assert send(b'{"model": "demo", "messages": [{"role": "user", "content": "hi"}]}').status_code == 200


def test_the_controller_refuses_nonsense(home: tuple[WholeStack, Visitor]) -> None:
    stack, ann = home
    shown = ann.instance()
    record = json.loads((stack.root_of(shown["instance_id"]) / "controller.json").read_text())
    proof = {"authorization": f"Bearer {controller_token(bytes.fromhex(stack.key('controller')), shown['machine_id'])}"}
    base = f"http://127.0.0.1:{record['port']}"
    nonsense = {
        name: content for name, content in MALFORMED.items() if name not in ("a NUL in a text", "half a surrogate")
    }
    refuses_nonsense(sender(base, "/v1/stop", proof), limit=16 * 1024, malformed=nonsense)
    for path in ("/v1/state?wait=nan", "/v1/state?since=-1", "/v1/logs?lines=0", "/v1/logs?lines=" + "9" * 5000):
        assert httpx.get(base + path, headers=proof, trust_env=False).status_code == 400, path
    survives_garbage(record["port"])
    state = httpx.get(base + "/v1/state", headers=proof, trust_env=False).json()
    assert (state["phase"], state["gateway"]["restarts"]) == ("ready", 0)
    assert ann.instance()["status"] == "ready"
