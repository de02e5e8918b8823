"""Derived keys differ by name, model tokens prove their machine and nothing else passes for one."""

import time

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hatchery_common import secrets
from hatchery_common.errors import Refused, SetupError

ROOT = bytes(range(32))
SEED = secrets.derive(ROOT, "model-token")
PUBLIC = secrets.public_key(SEED)


def test_derived_keys_are_stable_and_differ_by_name_and_root() -> None:
    assert secrets.derive(ROOT, "a") == secrets.derive(ROOT, "a")
    assert len({secrets.derive(ROOT, "a"), secrets.derive(ROOT, "b"), secrets.derive(bytes(32), "a")}) == 3
    with pytest.raises(SetupError):
        secrets.derive(b"short", "a")


def test_a_machines_header_is_its_own() -> None:
    key = secrets.derive(ROOT, "machine-identity")
    one, other = secrets.machine_header_name(key, "mch_a"), secrets.machine_header_name(key, "mch_b")
    assert one != other
    assert len(one) == len("x-hatchery-") + 32


def test_a_model_token_names_its_machine() -> None:
    token = secrets.mint_model_token(SEED, "mch_a", issued_at=int(time.time()))
    assert secrets.verify_model_token(PUBLIC, token) == "mch_a"


def _forged() -> list[str]:
    now = int(time.time())
    claims = {"sub": "mch_a", "aud": secrets.MODEL_AUDIENCE, "iat": now}
    private = Ed25519PrivateKey.from_private_bytes(SEED)
    other = Ed25519PrivateKey.generate()
    typ = {"typ": "model+jwt"}
    return [
        "",
        "nonsense",
        jwt.encode(claims, None, algorithm="none", headers=typ),
        jwt.encode(claims, PUBLIC.hex(), algorithm="HS256", headers=typ),
        jwt.encode(claims, other, algorithm="EdDSA", headers=typ),
        jwt.encode(claims | {"aud": "hatchery-ingress"}, private, algorithm="EdDSA", headers=typ),
        jwt.encode(claims, private, algorithm="EdDSA"),
        jwt.encode({"sub": "mch_a", "iat": now}, private, algorithm="EdDSA", headers=typ),
    ]


@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
def test_anything_else_is_refused() -> None:
    for token in _forged():
        with pytest.raises(Refused):
            secrets.verify_model_token(PUBLIC, token)


def test_comparison_is_by_content() -> None:
    assert secrets.same("a", "a")
    assert not secrets.same("a", "b")
    assert not secrets.same("ä", "a")
