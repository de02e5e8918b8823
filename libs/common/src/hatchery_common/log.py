"""Structured JSON logs with redaction: no secret reaches a log line."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, TextIO

import structlog
from structlog.typing import FilteringBoundLogger, Processor

REDACTED = "[redacted]"
_SECRET_NAME = re.compile(
    r"(secret|password|token|authorization|cookie|seed|private|api_?key|root_?key|x-hatchery-[0-9a-f]|pepper)", re.I
)
_SECRET_TEXT = re.compile(
    r"((?:Bearer|Basic)\s+)[A-Za-z0-9._~+/=-]{8,}"  # authorization headers
    r"|eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+"  # JWTs
    r"|x-hatchery-[0-9a-f]{32}"  # the secret header's name
    r"|S[UAONCX][A-Z2-7]{40,}"  # nkey seeds
    r"|sk-[A-Za-z0-9_-]{16,}"  # provider keys
    r"|(://[^:/@\s]+:)[^@/\s\"]+(?=@)"  # passwords in URLs
)


def redact_text(text: str) -> str:
    """The text without anything that looks like a secret."""
    return _SECRET_TEXT.sub(lambda found: (found.group(1) or found.group(2) or "") + REDACTED, text)


def _redact(value: object, name: str = "") -> object:
    is_secret = bool(name) and _SECRET_NAME.search(name) is not None
    if is_secret and isinstance(value, str | bytes):
        return REDACTED
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, dict):
        return {key: _redact(item, name if is_secret else str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_redact(item, name if is_secret else "") for item in value]
    return value


def _redacting(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key in list(event):
        event[key] = _redact(event[key], key)
    return event


def _line(event: object, **options: Any) -> str:
    """A line of JSON, redacted once more as a whole: exceptions, bytes and names of fields are text only now."""
    return redact_text(json.dumps(event, **options))


class _OfLibraries(logging.StreamHandler[TextIO]):
    """Where the standard library's loggers write."""


def configure(*, stream: TextIO | None = None, level: int = logging.INFO) -> None:
    """Set up logging for this process: ours, and that of libraries (from warnings on), as lines of JSON without secrets.

    Called once by the command line.
    """
    begin: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    end: list[Processor] = [
        structlog.processors.format_exc_info,
        _redacting,
        structlog.processors.JSONRenderer(serializer=_line),
    ]
    libraries = _OfLibraries(stream or sys.stderr)
    libraries.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*begin, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *end],
        )
    )
    root = logging.getLogger()
    for handler in [one for one in root.handlers if isinstance(one, _OfLibraries)]:
        root.removeHandler(handler)
    root.addHandler(libraries)
    root.setLevel(max(level, logging.WARNING))
    structlog.configure(
        processors=[*begin, *end],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(file=stream or sys.stderr),
        cache_logger_on_first_use=False,
    )


def get_logger(service: str) -> FilteringBoundLogger:
    """The logger of one service or part; events are dotted names such as `billing.open_account.done`."""
    return structlog.get_logger(service=service)
