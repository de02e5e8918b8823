"""Who is asking: users, their tenant, and the rules of admission."""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass
from enum import StrEnum

from hatchery_common.errors import InvalidInput
from hatchery_common.secrets import same

from hatchery_api.domain.errors import AccessRequired, Unauthenticated

USER_ID_PATTERN = r"^[^\x00-\x1f\x7f]{1,200}$"
_USER_ID_LIMIT = 200


class Via(StrEnum):
    """How the caller proved who they are."""

    BEARER = "bearer"
    COOKIE = "cookie"
    INTERNAL = "internal"
    PLATFORM = "platform"
    DEV = "dev"


@dataclass(frozen=True, slots=True)
class User:
    """A person of the website; `tenant` is the key of everything they own."""

    user_id: str
    tenant: str
    access_enabled: bool
    pepper: str | None
    created_ms: int


@dataclass(frozen=True, slots=True)
class Principal:
    """The admitted caller of one request."""

    user: User
    via: Via

    @property
    def tenant(self) -> str:
        return self.user.tenant


@dataclass(frozen=True, slots=True)
class Proof:
    """What a verified token says; `pepper` is the revocation value at its issue."""

    user_id: str
    pepper: str | None = None


def checked_user_id(text: str) -> str:
    """The user id as it may be stored; raises InvalidInput for control characters, lone surrogates or a wrong length."""
    printable = all(ord(char) >= 0x20 and ord(char) != 0x7F and not 0xD800 <= ord(char) <= 0xDFFF for char in text)
    if not 1 <= len(text) <= _USER_ID_LIMIT or not printable:
        raise InvalidInput(f"a user id has 1 to {_USER_ID_LIMIT} printable characters")
    return text


def decoded_user_id(text: str) -> str | None:
    """The user id that this base64 text holds (the seeds' reversible instance id), or None."""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
        return checked_user_id(raw.decode())
    except (binascii.Error, UnicodeDecodeError, InvalidInput, ValueError):
        return None


def app_name(prefix: str, user_id: str) -> str:
    """The deterministic per-user application name: `<prefix>-{sha256(user_id)[:20]}`."""
    return f"{prefix}-{hashlib.sha256(user_id.encode()).hexdigest()[:20]}"


def sandbox_id(user_id: str) -> str:
    """The seeds' reversible instance id: base64 of the user id."""
    return base64.b64encode(user_id.encode()).decode()


def require_access(user: User) -> None:
    """Raises AccessRequired when the user's access was never given or is withdrawn."""
    if not user.access_enabled:
        raise AccessRequired("this user has no access", hint="an operator must enable it")


def require_pepper(user: User, claimed: str | None) -> None:
    """Raises Unauthenticated unless the token carries the user's present pepper (None: none was ever set)."""
    if user.pepper is not None and not same(claimed or "", user.pepper):
        raise Unauthenticated("the token has been revoked", hint="sign in again")
