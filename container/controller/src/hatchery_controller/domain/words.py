"""What a gateway said last, cut for people: to whole lines, or to one short line."""

from __future__ import annotations

import re

MAX_LAST_WORDS = 200
_NO_CAUSE = re.compile(r"[\s}\])]|Node\.js v")  # a stack trace is indented, and Node signs below it


def last_words(text: str) -> str:
    """The last line that may say why, short enough for a sentence."""
    lines = [line for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if not _NO_CAUSE.match(line)]
    return _clipped((telling or lines or [""])[-1].strip(), MAX_LAST_WORDS)


def with_words(what: str, text: str) -> str:
    """One line: what happened, and the gateway's last words if it had any."""
    words = last_words(text)
    return f"{what}: {words}" if words else what


def newest_lines(text: str, limit: int) -> str:
    """As many of the newest lines as fit; of a last line that does not fit alone, its beginning."""
    kept: list[str] = []
    for line in reversed(text.splitlines()):
        size = sum(len(one) + 1 for one in kept) + len(line)
        if size > limit:
            break
        kept.append(line)
    if not kept:
        return _clipped(text.rpartition("\n")[2], limit)
    return "\n".join(reversed(kept))


def _clipped(line: str, limit: int) -> str:
    return line if len(line) <= limit else line[: limit - 1] + "…"
