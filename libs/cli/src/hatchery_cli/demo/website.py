"""What a website would do: an HTTP client of the api, with server-sent events and resumption."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import httpx
from hatchery_common.errors import HatcheryError
from hatchery_common.sse import ServerEvent, read_events


class DemoFailed(HatcheryError):
    """The api answered what the demo cannot go on with."""

    code = "demo_failed"


class Website:
    """One signed-in user's view of the api."""

    def __init__(self, base_url: str, token: str) -> None:
        headers = {"Authorization": f"Bearer {token}"}
        self._client = httpx.Client(
            base_url=base_url, headers=headers, timeout=httpx.Timeout(30, read=240), trust_env=False
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def get(self, path: str) -> Any:
        """The `data` of a GET; raises DemoFailed with the api's own sentence."""
        return _data(self._client.get(path))

    def post(self, path: str, body: Any = None) -> Any:
        """The `data` of a POST."""
        return _data(self._client.post(path, json=body))

    def delete(self, path: str) -> Any:
        """The `data` of a DELETE."""
        return _data(self._client.delete(path))

    def follow(self, path: str, deadline_s: float, after: str | None = None) -> Iterator[ServerEvent]:
        """Server-sent events of a path, resumed after `after`; ends with the stream or raises DemoFailed at the deadline."""
        until = time.monotonic() + deadline_s
        late = DemoFailed(f"{path} did not come to an end within {deadline_s:.0f} s")
        headers = {"Last-Event-ID": after} if after else {}
        limits = httpx.Timeout(30, read=deadline_s)
        try:
            with self._client.stream("GET", path, headers=headers, timeout=limits) as response:
                if response.status_code != 200:
                    response.read()
                    _data(response)
                yield from read_events(_until(until, response.iter_lines(), late))
        except httpx.ReadTimeout:
            raise late from None


def _until(end: float, lines: Iterator[str], late: DemoFailed) -> Iterator[str]:
    """The lines, signs of life among them; raises at the first one after the end."""
    for line in lines:
        if time.monotonic() > end:
            raise late
        yield line


def _data(response: httpx.Response) -> Any:
    try:
        body = response.json()
    except ValueError:
        body = {"ok": False, "error": response.text[:200]}
    if response.is_success and body.get("ok"):
        return body.get("data")
    raise DemoFailed(
        f"{response.request.method} {response.request.url.path}: {response.status_code} {body.get('error')}"
    )
