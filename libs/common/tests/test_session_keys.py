"""What counts as a session key that a thread can speak in."""

from __future__ import annotations

import pytest
from hatchery_common.contracts.threads import SESSION_KEY_LIMIT, CreateThreadRequest, is_session_key


@pytest.mark.parametrize(
    "name", ["main", "hatch:thd_1", "Signal:group:aB=", "whatsapp:+49", "a/b", "\u00e4", "x" * 189]
)
def test_a_session_key_names_an_agent_and_what_is_printable(name: str):
    key = f"agent:main:{name}"
    assert is_session_key(key)
    assert CreateThreadRequest(tenant="t", instance_id="i", session_key=key).session_key == key


@pytest.mark.parametrize(
    "char", [chr(code) for code in (0, 9, 10, 32, 0x7F, 0xA0, 0xAD, 0x200B, 0x202A, 0x3000, 0xD800)]
)
@pytest.mark.parametrize("where", ["{}x", "x{}y", "x{}"])
def test_what_cannot_be_seen_is_in_no_key(char: str, where: str):
    assert not is_session_key("agent:main:" + where.format(char))


@pytest.mark.parametrize("key", ["", "main", "agent:main", "agent::x", "agent:Main:x", f"agent:{'a' * 65}:x"])
def test_a_key_without_a_proper_agent_is_none(key: str):
    assert not is_session_key(key)


def test_a_key_has_its_limit():
    assert is_session_key("agent:main:".ljust(SESSION_KEY_LIMIT, "x"))
    assert not is_session_key("agent:main:".ljust(SESSION_KEY_LIMIT + 1, "x"))
