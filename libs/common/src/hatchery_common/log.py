"""Structured JSON logs with redaction: no secret reaches a log line."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, TextIO

import structlog
from structlog.typing import FilteringBoundLogger

REDACTED = "[redacted]"
_SECRET_NAME = re.compile(
    r"(secret|password|token|authorization|cookie|seed|private|api_?key|root_?key|x-hatchery-[0-9a-f]|pepper)", re.I
)
_SECRET_TEXT = re.compile(
    r"(Bearer\s+)[A-Za-z0-9._~+/=-]{8,}"  # authorization headers
    r"|eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+"  # JWTs
    r"|x-hatchery-[0-9a-f]{32}"  # the secret header's name
    r"|S[UAONCX][A-Z2-7]{40,}"  # nkey seeds
    r"|sk-[A-Za-z0-9_-]{16,}"  # provider keys
    r"|(://[^:/@\s]+:)[^@/\s]+(?=@)"  # passwords in URLs
)


def redact_text(text: str) -> str:
    """The text without anything that looks like a secret."""
    return _SECRET_TEXT.sub(lambda found: (found.group(1) or found.group(2) or "") + REDACTED, text)


def _redact(value: object, name: str = "") -> object:
    if name and _SECRET_NAME.search(name) and isinstance(value, str | bytes):
        return REDACTED
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, dict):
        return {key: _redact(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_redact(item) for item in value]
    return value


def _redacting(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key in list(event):
        event[key] = _redact(event[key], key)
    return event


def configure(*, stream: TextIO | None = None, level: int = logging.INFO) -> None:
    """Set up structlog for this process; called once by the command line."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _redacting,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(file=stream or sys.stderr),
        cache_logger_on_first_use=False,
    )


def get_logger(service: str) -> FilteringBoundLogger:
    """The logger of one service or part; events are dotted names such as `billing.open_account.done`."""
    return structlog.get_logger(service=service)
