"""The controller's HTTP API: who is let in, and what is refused."""

import json
import socket
import time

import pytest
from machine_under_test import TOKEN, Machine


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    machine = Machine(tmp_path_factory.mktemp("http") / "machine")
    try:
        machine.start()
        machine.wait_for("ready")
        yield machine
    finally:
        machine.close()


def raw(machine, data, seconds=5):
    with socket.create_connection(("127.0.0.1", machine.port), timeout=seconds) as connection:
        connection.sendall(data)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
        return answer


@pytest.mark.parametrize("path", ["/v1/state", "/v1/logs", "/v1/stop", "/v1/gateway/restart", "/nope", "/healthz/x"])
@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN[:-1], TOKEN + "x", TOKEN.upper()])
def test_without_the_right_token_401(ready, path, token):
    for method in ("GET", "POST"):
        assert ready.call(method, path, token=token)[0] == 401
    assert ready.state()["phase"] == "ready"


@pytest.mark.parametrize("header", [f"Basic {TOKEN}", TOKEN, f"Bearer  {TOKEN}", "Bearer", "Bearer é"])
def test_odd_authorization_headers_401(ready, header):
    assert ready.call("GET", "/v1/state", token=None, headers={"Authorization": header})[0] == 401


def test_two_authorization_headers_401(ready):
    line = f"Authorization: Bearer {TOKEN}\r\n"
    answer = raw(ready, f"GET /v1/state HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{line}{line}\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 401")


def test_health_needs_no_token(ready):
    assert ready.call("GET", "/healthz", token=None) == (200, '{"ok": true}')


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/healthz", None, 405),
        ("POST", "/v1/state", None, 405),
        ("GET", "/v1/stop", None, 405),
        ("GET", "/v2/state", None, 404),
        ("GET", "/v1/state?wait=nan", None, 400),
        ("GET", "/v1/state?wait=-1", None, 400),
        ("GET", "/v1/state?wait=soon", None, 400),
        ("GET", "/v1/state?since=abc", None, 400),
        ("GET", "/v1/state?since=²", None, 400),
        ("GET", "/v1/state?" + "a=1&" * 50, None, 400),
        ("GET", "/v1/logs?lines=0", None, 400),
        ("GET", "/v1/logs?lines=99999999", None, 400),
        ("POST", "/v1/stop", "{", 400),
        ("POST", "/v1/stop", "[]", 400),
        ("POST", "/v1/stop", "[" * 10_000, 400),
        ("POST", "/v1/stop", '{"deadline_s": -1}', 400),
        ("POST", "/v1/stop", '{"deadline_s": true}', 400),
        ("POST", "/v1/stop", '{"deadline_s": 1e999}', 400),
        ("POST", "/v1/gateway/restart", '{"reason": 5}', 400),
        ("POST", "/v1/stop", "x" * (17 * 1024), 413),
        ("POST", "/v1/stop", "x" * (1024 * 1024), 413),
    ],
)
def test_refusals_are_typed_and_change_nothing(ready, method, path, body, status):
    got, text = ready.call(method, path.replace("²", "%C2%B2"), body)
    assert got == status, text
    assert set(json.loads(text)["error"]) == {"code", "message"}
    assert ready.state()["phase"] == "ready"


def test_oversize_chunked_body_413(ready):
    head = f"POST /v1/stop HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"2000\r\n" + b"x" * 0x2000 + b"\r\n"
    assert raw(ready, head.encode() + chunk * 4).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
    ],
)
def test_malformed_http_is_refused(ready, data):
    answer = raw(ready, data)
    assert answer.split(b" ")[1][:1] == b"4", answer
    assert ready.call("GET", "/healthz", token=None)[0] == 200


def test_a_client_that_goes_away_midway(ready):
    with socket.create_connection(("127.0.0.1", ready.port)) as connection:
        connection.sendall(b"POST /v1/stop HTTP/1.1\r\nHost: x\r\nContent-Le")
    assert ready.state()["phase"] == "ready"


def test_many_idle_connections_do_not_lock_us_out_for_ever(ready):
    idle = [socket.create_connection(("127.0.0.1", ready.port)) for _ in range(70)]
    try:
        time.sleep(0.3)
        answers = [connection.recv(100) for connection in idle[-3:]]
        assert all(answer.startswith(b"HTTP/1.1 503") for answer in answers)
    finally:
        for connection in idle:
            connection.close()
    time.sleep(0.3)
    assert ready.state()["phase"] == "ready"


def test_long_poll_answers_at_once_for_an_old_revision_and_waits_for_the_present_one(ready):
    revision = ready.state()["revision"]
    start = time.monotonic()
    assert ready.state(f"?wait=5&since={revision - 1}")["revision"] == revision
    assert ready.state("?wait=5")["revision"] == revision
    assert time.monotonic() - start < 1
    assert ready.state(f"?wait=0.5&since={revision}")["revision"] == revision
    assert time.monotonic() - start >= 0.5


def test_keep_alive_and_pipelining(ready):
    one = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    answer = raw(ready, one * 2 + one.replace(b"Host", b"Connection: close\r\nHost"))
    assert answer.count(b'{"ok": true}') == 3
