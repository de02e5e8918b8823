"""Redaction: known secrets in every form, and whatever looks like a key."""

import time

import pytest
from hatchery_controller.domain.redaction import MASK, Redactor
from machine_under_test import HEADER, MODEL_TOKEN, TOKEN

redact = Redactor([TOKEN, MODEL_TOKEN, HEADER, 'pa"ss\\word', "line one of it\nline two of it", "ab"])


@pytest.mark.parametrize(
    ("line", "gone"),
    [
        (f"start with {TOKEN} now", TOKEN),
        (f"key={MODEL_TOKEN}", MODEL_TOKEN),
        (f"missing header {HEADER.upper()}", HEADER.upper()),
        ('{"p":"pa\\"ss\\\\word"}', 'ss\\\\word'),
        ("here is line two of it.", "line two of it"),
        ("x-hatchery-ffffffffffffffffffffffffffffffff refused", "ffffffff"),
        ("Authorization: Bearer abc.def.ghi", "abc.def.ghi"),
        ("authorization=Basic dXNlcjpwYXNz", "dXNlcjpwYXNz"),
        ("using sk-proj-abcDEF123456789012 for openai", "abcDEF123456789012"),
        ("token eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJtY2gifQ.c2lnbmF0dXJl end", "eyJzdWIiOiJtY2gifQ"),
        ("bot 123456789:AAEhBOweik6ad9r_QXMENQjcrGbqCr4K-bc", "AAEhBOweik6ad9r"),
        ("AKIAIOSFODNN7EXAMPLE is aws", "IOSFODNN7EXAMPLE"),
        ("ghp_abcdefghijklmnopqrstuvwxyz012345", "abcdefghijklmnop"),
        ("postgres://bob:hunter22@db/x", "hunter22"),
        ('{"apiKey": "hunter22", "x": 1}', "hunter22"),
        ("DISCORD_TOKEN=hunter22", "hunter22"),
        ("password: hunter22", "hunter22"),
        ("-----BEGIN RSA PRIVATE KEY-----MIIEpAIBAAK", "MIIEpAIBAAK"),
        ("digest 9f86d081884c7d659a2feaa0c55ad015", "9f86d081884c7d65"),
        ("opaque Zm9vYmFyYmF6cXV4MTIzNDU2Nzg5MEFCQ0RFRkdI", "Zm9vYmFyYmF6"),
    ],
)  # fmt: skip
def test_secrets_go(line, gone):
    assert gone not in redact(line)
    assert MASK in redact(line)


@pytest.mark.parametrize(
    "line",
    [
        "2026-11-20T11:46:10.134+00:00 [gateway] loading configuration…",
        "[gateway] http server listening (14 plugins: anthropic, browser; 4.2s)",
        "Invalid config at gateway.auth.trustedProxy: unknown key colour",
        "session 0199f6c2-7c1e-7e36-a3a1-000000000000 started by owner@mch_1",
        "log file: /data/machines/mch_01j9zq4m5nabcdefghijklmnopqrstu/tmp/openclaw.log",
        "contextTokens: 128000, totalTokens=1234567",
        "ab is too short to be a secret",
    ],
)
def test_ordinary_lines_stay(line):
    assert redact(line) == line


def test_escapes_and_control_characters_go():
    assert redact("\x1b[31mred\x1b[0m\x00\x07 text\ttab") == "red text\ttab"


@pytest.mark.parametrize("unit", ["a", "token", "a-", "eyJ-", "://a:", "Aa1", "secret_", "bearer ", "f0", "123456789:"])
def test_a_tenants_line_cannot_make_it_slow(unit):
    line = (unit * 16384)[:16384]
    start = time.thread_time()  # of our own work: how busy the machine is does not count
    redact(line)
    assert time.thread_time() - start < 0.5
