"""Ids: UUIDv7 in lower-case base32 with a prefix, the tenant key, and deterministic thread ids."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import threading
import time
import uuid

_TOKEN = re.compile(r"^[a-z0-9_-]{1,64}$")
_THREAD_NAMESPACE = uuid.UUID("6f1d8f0e-6f0c-4c5b-9d8e-5a0f5f5a7d11")
_lock = threading.Lock()
_last_ms = 0
_sequence = 0


def uuid7() -> uuid.UUID:
    """A UUIDv7 (RFC 9562, section 5.7), strictly increasing within this process by its 12-bit counter."""
    global _last_ms, _sequence
    with _lock:
        now_ms = max(time.time_ns() // 1_000_000, _last_ms)
        _sequence = _sequence + 1 if now_ms == _last_ms else 0
        if _sequence > 0xFFF:
            now_ms, _sequence = now_ms + 1, 0
        _last_ms = now_ms
        value = (now_ms << 80) | (0x7 << 76) | (_sequence << 64) | (0b10 << 62)
        value |= int.from_bytes(os.urandom(8), "big") & ((1 << 62) - 1)
    return uuid.UUID(int=value)


def base32(raw: bytes) -> str:
    """Lower-case base32 without padding: safe in subjects, host names and URLs."""
    return base64.b32encode(raw).decode().rstrip("=").lower()


def new_id(prefix: str) -> str:
    """A new id such as `ins_…`, `op_…`, `run_…`: sorts by time."""
    return f"{prefix}_{base32(uuid7().bytes)}"


def tenant_key(user_id: str) -> str:
    """The tenant of a user: `t` + base32(sha256(user_id))[:25], lower case; lossless through the api's stored mapping."""
    return "t" + base32(hashlib.sha256(user_id.encode()).digest())[:25]


def thread_id(tenant: str, client_key: str | None = None) -> str:
    """A thread's id: the same for the same (tenant, client key), else new (AC2)."""
    if client_key is None:
        return new_id("thd")
    named = uuid.uuid5(_THREAD_NAMESPACE, tenant + "\0" + client_key)
    return f"thd_{base32(named.bytes)}"


def is_token(text: str) -> bool:
    """Whether the text may stand as one token of a subject."""
    return bool(_TOKEN.match(text))
