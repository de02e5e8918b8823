"""No secret reaches a log line, whether by name or by shape."""

import io
import json

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
    ],
)
def test_secrets_by_shape_are_redacted(text: str) -> None:
    clean = log.redact_text(text)
    assert log.REDACTED in clean
    for secret in ("abcdefgh12345678", "eyJhbGci", "0123456789abcdef0", "SUAIBDPB", "sikret99", "abcdefghijklmnop"):
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
