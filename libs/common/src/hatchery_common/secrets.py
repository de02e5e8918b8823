"""Every secret derived from the one root by HKDF-SHA256, and the tokens made from them.

Only the command line reads the root; each service gets just its own keys (`hatchery secrets render`).
"""

from __future__ import annotations

import hashlib
import hmac

import jwt
from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from hatchery_common.errors import Refused, SetupError

MODEL_AUDIENCE = "hatchery-llm"
_MODEL_TYPE = "model+jwt"


def derive(root: bytes, name: str, length: int = 32) -> bytes:
    """The key called `name` under this root (HKDF, RFC 5869; info `hatchery/<name>`); the same for ever."""
    if len(root) < 32:
        raise SetupError("the root key is shorter than 32 bytes", hint="let `hatchery up` generate one")
    return HKDF(algorithm=hashes.SHA256(), length=length, salt=None, info=f"hatchery/{name}".encode()).derive(root)


def machine_header_name(key: bytes, machine_id: str) -> str:
    """The secret name of the header that carries the user's identity to this machine's gateway (design section 6)."""
    return f"x-hatchery-{derive(key, f'header/{machine_id}', 16).hex()}"


def owner_identity(machine_id: str) -> str:
    """The identity of a machine's owner inside its gateway."""
    return f"owner@{machine_id}"


def service_identity(machine_id: str) -> str:
    """The identity under which Hatchery itself speaks to a machine's gateway."""
    return f"svc@{machine_id}"


def controller_token(key: bytes, machine_id: str) -> str:
    """The token that a machine's controller demands."""
    return derive(key, f"controller/{machine_id}").hex()


def runtime_service_token(key: bytes, tenant: str) -> str:
    """The token of a tenant on the runtime API (`X-OpenAgents-Service-Token`)."""
    return hmac.new(key, tenant.encode(), hashlib.sha256).hexdigest()


def same(given: str, wanted: str) -> bool:
    """Whether two secrets are equal, in constant time."""
    return hmac.compare_digest(given.encode(), wanted.encode())


def public_key(seed: bytes) -> bytes:
    """The 32-byte public key of an Ed25519 seed."""
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def mint_model_token(seed: bytes, machine_id: str, *, issued_at: int) -> str:
    """The EdDSA token with which one machine calls the model gateway; it is valid only while a route shows the machine."""
    claims = {"sub": machine_id, "aud": MODEL_AUDIENCE, "iat": issued_at}
    private = Ed25519PrivateKey.from_private_bytes(seed)
    return jwt.encode(claims, private, algorithm="EdDSA", headers={"typ": _MODEL_TYPE})


def verify_model_token(public: bytes, token: str) -> str:
    """The machine id of a valid model token; raises Refused for anything else (other algorithm, audience or type)."""
    try:
        header = jwt.get_unverified_header(token)
        if header.get("typ") != _MODEL_TYPE:
            raise Refused("this is not a model token")
        key = Ed25519PublicKey.from_public_bytes(public)
        options: dict[str, list[str]] = {"require": ["sub", "aud", "iat"]}
        claims = jwt.decode(token, key, algorithms=["EdDSA"], audience=MODEL_AUDIENCE, options=options)  # pyright: ignore[reportArgumentType]
    except (jwt.PyJWTError, InvalidKey, ValueError) as error:
        raise Refused("the model token is not valid") from error
    return str(claims["sub"])
