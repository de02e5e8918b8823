"""What a website, a server or one of our own services does with our HTTP doors: requests, envelopes, event streams."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
from hatchery_common.sse import ServerEvent, read_events

ENDS = frozenset({"finished", "failed", "superseded"})
DEADLINE_S = 90.0
RECONNECT_S = 0.2


@dataclass(frozen=True)
class Turn:
    """An answer as it was read from a thread's log."""

    text: str
    chunks: int
    last_id: str
    events: list[ServerEvent]

    @property
    def end(self) -> ServerEvent:
        return self.events[-1]


class Visitor:
    """A caller with fixed headers."""

    def __init__(self, base_url: str, headers: dict[str, str] | None = None) -> None:
        self.client = httpx.Client(base_url=base_url, headers=headers, timeout=httpx.Timeout(60.0), trust_env=False)

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self.client.request(method, path, **options)

    def get(self, path: str, **options: Any) -> Any:
        """The data of a GET."""
        return data_of(self.request("GET", path, **options))

    def post(self, path: str, body: Any = None, **options: Any) -> Any:
        """The data of a POST."""
        return data_of(self.request("POST", path, json=body, **options))

    def delete(self, path: str, **options: Any) -> Any:
        """The data of a DELETE."""
        return data_of(self.request("DELETE", path, **options))

    def follow(
        self, path: str, after: str | None = None, *, method: str = "GET", body: Any = None, seconds: float = DEADLINE_S
    ) -> Iterator[ServerEvent]:
        """Events of a stream until its end; close the iterator to leave early."""
        headers = {"Last-Event-ID": after} if after is not None else {}
        end = time.monotonic() + seconds
        with self.client.stream(method, path, headers=headers, json=body) as response:
            if response.status_code != 200:
                response.read()
                raise AssertionError(f"{response.status_code} {response.text}")
            for seen in read_events(response.iter_lines()):
                yield seen
                assert time.monotonic() < end, f"{path} did not end within {seconds:g} s"

    def settled(self, operation_id: str) -> list[ServerEvent]:
        """The events of an operation to its end, which must be `finished`."""
        seen = list(self.follow(f"/api/operations/{operation_id}/events"))
        assert seen[-1].event == "finished", [(one.event, one.data) for one in seen]
        return seen

    def wish(self, verb: str, *, name: str = "default") -> dict[str, Any]:
        """provision, start, stop, restart or delete the own instance and wait until it is so; returns what was accepted."""
        if verb == "provision":
            accepted = self.post("/api/openclaw/instance", {"name": name})
        elif verb == "delete":
            accepted = self.delete("/api/openclaw/instance", params={"name": name})
        else:
            accepted = self.post(f"/api/openclaw/instance/{verb}", params={"name": name})
        if accepted["operation"] is not None:
            self.settled(accepted["operation"]["operation_id"])
        return accepted

    def instance(self, *, name: str = "default") -> Any:
        return self.get("/api/openclaw/instance", params={"name": name})

    def thread(self, **body: Any) -> dict[str, Any]:
        return self.post("/api/threads", body)

    def say(self, thread_id: str, text: str, after: str | None = None) -> Turn:
        """Post a message and read the log from `after` to the end of its run."""
        run_id = self.post(f"/api/threads/{thread_id}/messages", {"text": text})["run_id"]
        return self.read_turn(thread_id, run_id, after)

    def read_turn(self, thread_id: str, run_id: str, after: str | None = None) -> Turn:
        """One run's entries, read from the thread's log to its end; a stream that ends before is resumed, as browsers do."""
        mine: list[ServerEvent] = []
        end = time.monotonic() + DEADLINE_S
        while True:
            for seen in self.follow(f"/api/threads/{thread_id}/events", after):
                after = seen.id or after
                if isinstance(seen.data, dict) and seen.data.get("run_id") == run_id:
                    mine.append(seen)
                if mine and mine[-1].event in ("run.finished", "run.failed"):
                    return turn_of(mine)
            assert time.monotonic() < end, f"{run_id} did not end: {[one.event for one in mine]}"
            time.sleep(RECONNECT_S)

    def history(self, thread_id: str) -> list[dict[str, Any]]:
        """The messages of the gateway's session behind a thread."""
        key = self.get(f"/api/threads/{thread_id}")["session_key"]
        return self.get(f"/api/openclaw/sessions/{key}/history")["messages"]


def turn_of(entries: list[ServerEvent]) -> Turn:
    """The answer that these entries of one run hold."""
    deltas = [one.data["data"]["text"] for one in entries if one.event == "text.delta"]
    return Turn("".join(deltas), len(deltas), entries[-1].id or "", entries)


def data_of(response: httpx.Response) -> Any:
    """The envelope's data; anything but success fails the test with the api's own sentence."""
    body = response.json()
    assert response.is_success, f"{response.status_code} {body}"
    assert body["ok"] is True
    return body["data"]


def refusal(response: httpx.Response, status: int, code: str | None = None) -> dict[str, Any]:
    """The body of a refusal in the envelope, with this status and code."""
    assert response.status_code == status, f"{response.status_code} {response.text}"
    body = response.json()
    assert body["ok"] is False
    assert "data" not in body
    assert isinstance(body["error"], str)
    if code is not None:
        assert body["error_detail"]["code"] == code, body
    return body


def until(events: Iterator[ServerEvent], wanted: Callable[[ServerEvent], bool]) -> list[ServerEvent]:
    """Events up to the first wanted one; then the stream is left."""
    found: list[ServerEvent] = []
    for seen in events:
        found.append(seen)
        if wanted(seen):
            return found
    raise AssertionError(f"the stream ended first: {[one.event for one in found]}")
