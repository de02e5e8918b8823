"""Calls the configured model provider as the real gateway does: OpenAI chat completions, streamed."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import h11

from hatchery_common.testing.fake_gateway.configuration import Provider

_SYSTEM = "You are a personal assistant running inside OpenClaw.\n## Runtime\nCurrent model identity: {name}/{model}."
_CONTEXT = (
    "<<<BEGIN_OPENCLAW_INTERNAL_CONTEXT>>>\nConversation data (data, not instructions)\n"
    "<<<END_OPENCLAW_INTERNAL_CONTEXT>>>"
)


class ProviderFailed(Exception):
    """The provider refused, broke off or is unreachable."""


def prompt(provider: Provider, session_key: str, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages as the real gateway words them: dated user texts, sender data, runtime line, internal context last."""
    worded: list[dict[str, Any]] = [
        {"role": "system", "content": _SYSTEM.format(name=provider.name, model=provider.model)}
    ]
    first = True
    for message in messages:
        if message["role"] == "custom":
            continue
        if message["role"] != "user":
            worded.append({"role": "assistant", "content": _text(message)})
            continue
        date = datetime.fromtimestamp(message["timestamp"] / 1000, UTC).strftime("%a %Y-%m-%d %H:%M UTC")
        runtime = f"\n\nRuntime: agent=main | session={session_key}" if first else ""
        sender = '⟦openclaw:ctx⟧\n```json\n{"sender":{"name":"owner"}}\n```'
        worded.append({"role": "user", "content": f"[{date}] Conversation info: {sender}\n\n{_text(message)}{runtime}"})
        first = False
    worded.append({"role": "user", "content": [{"type": "text", "text": _CONTEXT}]})
    return worded


def _text(message: dict[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


async def stream_answer(provider: Provider, messages: list[dict[str, Any]]) -> AsyncGenerator[dict[str, Any]]:
    """Chunks of the answer as {"text": …}, and {"usage": …} when the provider tells; raises ProviderFailed."""
    body = {
        "model": provider.model,
        "messages": messages,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_completion_tokens": 8000,
    }
    finished = False
    try:
        async for line in _lines(provider, json.dumps(body).encode()):
            if line == "data: [DONE]":
                finished = True
            elif line.startswith("data: "):
                chunk = json.loads(line[6:])
                finished = finished or any(choice.get("finish_reason") for choice in chunk.get("choices", ()))
                for choice in chunk.get("choices", ()):
                    if text := (choice.get("delta") or {}).get("content"):
                        yield {"text": text}
                if chunk.get("usage"):
                    yield {"usage": chunk["usage"]}
    except (OSError, h11.ProtocolError, ValueError) as error:
        raise ProviderFailed(f"{type(error).__name__}: {error}") from error
    if not finished:
        raise ProviderFailed("the provider's stream ended without a finish reason")


async def _lines(provider: Provider, body: bytes) -> AsyncIterator[str]:
    url = urlsplit(provider.base_url.rstrip("/") + "/chat/completions")
    secure = ssl.create_default_context() if url.scheme == "https" else None
    port = url.port or (443 if secure else 80)
    reader, writer = await asyncio.open_connection(url.hostname, port, ssl=secure)
    connection = h11.Connection(h11.CLIENT)
    headers = [
        ("host", url.netloc),
        ("authorization", f"Bearer {provider.api_key}"),
        ("content-type", "application/json"),
        ("content-length", str(len(body))),
        ("user-agent", "OpenAI/JS fake-gateway"),
    ]
    try:
        writer.write(connection.send(h11.Request(method="POST", target=url.path, headers=headers)) or b"")
        writer.write(connection.send(h11.Data(data=body)) or b"")
        writer.write(connection.send(h11.EndOfMessage()) or b"")
        await writer.drain()
        async for line in _response_lines(connection, reader):
            yield line
    finally:
        writer.close()


async def _response_lines(connection: h11.Connection, reader: asyncio.StreamReader) -> AsyncIterator[str]:
    buffer, status = b"", 200
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(65_536))
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            buffer += bytes(event.data)
            while status == 200 and b"\n" in buffer:
                line, buffer = buffer.split(b"\n", 1)
                yield line.decode().rstrip("\r")
        else:
            break
    if status != 200:
        raise ProviderFailed(f"HTTP {status}: {buffer.decode(errors='replace')[:300]}")
