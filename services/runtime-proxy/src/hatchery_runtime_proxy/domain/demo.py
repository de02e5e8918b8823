"""What the built-in demo model says: that it is a demo, what it was told, and how far the conversation has come."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from hatchery_runtime_proxy.domain.usage import Tokens

_DATE = re.compile(r"^\[[A-Z][a-z]{2} \d{4}-\d\d-\d\d \d\d:\d\d [A-Z]+\] ")
_SENDER = re.compile(r"^Conversation info:[^\n]*\n```json\n.*?\n```\s*", re.DOTALL)
_RUNTIME = re.compile(r"\n\nRuntime: agent=[^\n]*(\n.*)?\Z", re.DOTALL)
_INTERNAL = re.compile(r"<<<BEGIN_OPENCLAW_INTERNAL_CONTEXT>>>.*?<<<END_OPENCLAW_INTERNAL_CONTEXT>>>", re.DOTALL)
_QUOTE_LENGTH = 300


def spoken(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """The user's own words, oldest first, without what OpenClaw wraps around them."""
    texts = [_clean(_text(message)) for message in messages if message.get("role") == "user"]
    return [text for text in texts if text and not text.startswith("[System]")]


def reply(messages: Sequence[Mapping[str, Any]]) -> str:
    """The demo model's answer."""
    said = spoken(messages)
    if not said:
        return "This is Hatchery's offline demo model, not a real AI. I have not been asked anything yet."
    opening = "This is Hatchery's offline demo model, not a real AI: it only repeats what it sees."
    text = f"{opening} You said: “{_quote(said[-1])}”."
    if len(said) == 1:
        return f"{text} This is the first message of our conversation."
    return f"{text} This is message {len(said)} of our conversation; the one before was: “{_quote(said[-2])}”."


def pieces(text: str) -> list[str]:
    """The text in the pieces in which it is streamed: three words each."""
    words = re.findall(r"\S+\s*", text)
    return ["".join(words[start : start + 3]) for start in range(0, len(words), 3)]


def tokens(messages: Sequence[Mapping[str, Any]], answer: str) -> Tokens:
    """Counts by the rule of thumb of four characters a token; the system prompt does not count for a demo."""
    heard = sum(len(_text(message)) for message in messages if message.get("role") in ("user", "assistant"))
    return Tokens(-(-heard // 4), -(-len(answer) // 4))


def _clean(text: str) -> str:
    text = _DATE.sub("", _INTERNAL.sub("", text).strip())
    return _RUNTIME.sub("", _SENDER.sub("", text)).strip()


def _quote(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _QUOTE_LENGTH else line[:_QUOTE_LENGTH] + "…"


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = cast("list[Any]", content) if isinstance(content, list) else []
    texts = [cast("dict[str, Any]", part).get("text") for part in parts if isinstance(part, dict)]
    return "".join(text for text in texts if isinstance(text, str))
