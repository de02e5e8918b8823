"""No secret reaches a log line, whether by name or by shape."""

import io
import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
from hatchery_common import log


@pytest.mark.parametrize(
    "text",
    [
        "authorization: Bearer abcdefgh12345678",
        "token eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl",
        "header x-hatchery-0123456789abcdef0123456789abcdef",
        "seed SUAIBDPBAUTWCWBKIO6XHQNINK5FWJW4OHLXC3HQ2KFE4PEJUA44CNHTC4",
        "postgresql://hatchery_api:sikret99@127.0.0.1:5432/hatchery",
        "key sk-abcdefghijklmnopqrstuvwx",
        "authorization: Basic c2lrcmV0OTk6c2lrcmV0OTk=",
    ],
)
def test_secrets_by_shape_are_redacted(text: str) -> None:
    clean = log.redact_text(text)
    assert log.REDACTED in clean
    for secret in (
        "abcdefgh12345678",
        "eyJhbGci",
        "0123456789abcdef0",
        "SUAIBDPB",
        "sikret99",
        "c2lrcmV0",
        "abcdefghijklmnop",
    ):
        assert secret not in clean


def test_secrets_by_name_are_redacted_at_any_depth() -> None:
    stream = io.StringIO()
    log.configure(stream=stream)
    log.get_logger("test").info(
        "test.event", api_key="k1", nested={"password": "k2", "list": [{"token": "k3"}]}, plain="seen"
    )
    line = json.loads(stream.getvalue())
    log.configure()
    assert line["service"] == "test"
    assert line["plain"] == "seen"
    assert not {"k1", "k2", "k3"} & set(stream.getvalue().replace('"', " ").split())


def lines_of(*calls: Callable[[], None]) -> list[dict[str, Any]]:
    """What these calls log, as lines of JSON."""
    stream = io.StringIO()
    log.configure(stream=stream)
    try:
        for call in calls:
            call()
    finally:
        log.configure()
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_what_is_text_only_in_the_line_is_redacted_and_the_line_stays_json() -> None:
    header = "x-hatchery-0123456789abcdef0123456789abcdef"
    url = "postgresql://u:sikret99@h/db"
    logger = log.get_logger("test")
    (line,) = lines_of(
        lambda: logger.info("e", headers={header: "owner@m"}, error=ValueError(url), raw=url.encode(), secrets=["k1"])
    )
    text = json.dumps(line)
    assert "0123456789abcdef" not in text
    assert "sikret99" not in text
    assert line["secrets"] == [log.REDACTED]
    (line,) = lines_of(lambda: logger.info("e", at="http://a:8800", who="x@y.z"))
    assert (line["at"], line["who"]) == ("http://a:8800", "x@y.z")


def test_libraries_log_in_the_same_form_without_secrets() -> None:
    def fail() -> None:
        try:
            raise ValueError("postgresql://u:sikret99@h/db")
        except ValueError:
            logging.getLogger("uvicorn.error").exception("Exception in ASGI application")

    (line,) = lines_of(fail, lambda: logging.getLogger("asyncio").info("not worth a line"))
    assert (line["event"], line["level"], line["logger"]) == ("Exception in ASGI application", "error", "uvicorn.error")
    assert "ValueError" in line["exception"]
    assert "sikret99" not in json.dumps(line)
