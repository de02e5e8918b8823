"""One OpenAI-compatible provider: the request with `include_usage`, the answer's bytes as they come."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

import httpx

from hatchery_runtime_proxy.ports import Completion, ProviderTimeout, ProviderUnavailable

OPENAI = "https://api.openai.com/v1"
_JSON = {"content-type": "application/json"}
_PASSED = ("retry-after", "retry-after-ms")
_PLAIN = re.compile(r"[ -~]{1,64}")
_UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError, httpx.UnsupportedProtocol)


class OpenAIProvider:
    """Passes completions through; `default` becomes the configured model."""

    def __init__(self, url: str, key: str | None, model: str | None, *, idle_s: float = 120.0) -> None:
        self._url = url.rstrip("/") + "/chat/completions"
        self._model = model
        self.name = httpx.URL(url).host
        self.models = (model,) if model else ()
        headers = {"authorization": f"Bearer {key}"} if key else {}
        timeout = httpx.Timeout(idle_s, connect=5.0)
        limits = httpx.Limits(max_connections=200, max_keepalive_connections=50)
        self._http = httpx.AsyncClient(headers=headers, timeout=timeout, limits=limits)

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    @asynccontextmanager
    async def complete(self, body: Mapping[str, Any]) -> AsyncGenerator[Completion]:
        """The provider's own status, content type and bytes; raises ProviderUnavailable."""
        try:
            # Escaped to ASCII: a text cut in the middle of a character holds what UTF-8 cannot.
            sent = json.dumps(self._sent(body))
            async with self._http.stream("POST", self._url, content=sent, headers=_JSON) as answer:
                content_type = answer.headers.get("content-type", "application/json")
                yield Completion(answer.status_code, content_type, _bytes(answer), _passed(answer))
        except httpx.HTTPError as error:
            raise _unavailable(error) from error

    def _sent(self, body: Mapping[str, Any]) -> dict[str, Any]:
        sent = dict(body)
        if sent.get("model") == "default" and self._model:
            sent["model"] = self._model
        if sent.get("stream"):
            options = sent.get("stream_options")
            given = cast("dict[str, Any]", options) if isinstance(options, dict) else {}
            sent["stream_options"] = {**given, "include_usage": True}
        return sent


def _unavailable(error: httpx.HTTPError) -> ProviderUnavailable:
    """What never reached the provider cost nothing; of anything else that is not known."""
    kind = ProviderTimeout if isinstance(error, httpx.TimeoutException) else ProviderUnavailable
    unspent = isinstance(error, _UNSENT)
    return kind(f"the model provider does not answer: {type(error).__name__}", unspent=unspent)


def _passed(answer: httpx.Response) -> dict[str, str]:
    found = {name: answer.headers.get(name, "") for name in _PASSED}
    return {name: value for name, value in found.items() if _PLAIN.fullmatch(value)}


async def _bytes(answer: httpx.Response) -> AsyncIterator[bytes]:
    """Decoded bytes: a compressed answer could not be scanned for its usage."""
    try:
        async for chunk in answer.aiter_bytes():
            yield chunk
    except httpx.HTTPError as error:
        raise ProviderUnavailable(f"the model provider's stream broke: {type(error).__name__}") from error
