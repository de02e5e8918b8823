"""Reads answers of machines, which belong to tenants: never more than a limit, never deeper than Python can."""

from __future__ import annotations

import json
from typing import Any

import httpx


class Unreadable(Exception):
    """The answer is too large or no JSON."""


async def read_bytes(answer: httpx.Response, limit: int) -> bytes:
    """The whole body; raises Unreadable as soon as it is over the limit."""
    body = bytearray()
    async for chunk in answer.aiter_bytes():
        body += chunk
        if len(body) > limit:
            raise Unreadable(f"the answer is larger than {limit} bytes")
    return bytes(body)


def parse(body: bytes | str) -> Any:
    """The body as JSON; raises Unreadable."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Unreadable("the answer is not JSON") from error


def parse_object(body: bytes | str) -> dict[str, Any]:
    """The body as a JSON object; raises Unreadable."""
    value = parse(body)
    if not isinstance(value, dict):
        raise Unreadable("the answer is no JSON object")
    return value
