"""Proofs that prove nothing: every door refuses them by a typed error, and goes on as before."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Generator
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hatchery_common.secrets import MODEL_AUDIENCE, mint_model_token
from visitor import Visitor, refusal
from whole_stack import WholeStack, whole_stack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
ANN = "ann@example.com"
VALID = {"env": "production", "pepper": "present"}


@pytest.fixture(scope="module")
def home() -> Generator[tuple[WholeStack, Visitor]]:
    with whole_stack("one", HATCHERY_API_JWT_ENVIRONMENT="production") as stack:
        stack.up()
        ann = stack.visitor(ANN, **VALID)
        ann.wish("provision")
        yield stack, ann


def unsigned(claims: dict[str, Any], algorithm: str) -> str:
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in ({"alg": algorithm}, claims)]
    return b".".join([*parts, b""]).decode()


def forged(stack: WholeStack) -> dict[str, str]:
    """Website tokens of which each has one thing wrong."""
    now = int(time.time())
    good = {"sub": ANN, "iss": "hatchery", "aud": "hatchery", "iat": now, "exp": now + 3600, **VALID}
    right = stack.token(ANN, **VALID)
    head, _, rest = right.partition(".")
    changed: dict[str, dict[str, Any]] = {
        "expired": {"iat": now - 7200, "exp": now - 3600},
        "not yet valid": {"nbf": now + 3600},
        "another audience": {"aud": "somebody-else"},
        "another issuer": {"iss": "somebody-else"},
        "another environment": {"env": "staging"},
        "no environment": {"env": None},
        "no expiry": {"exp": None},
        "no audience": {"aud": None},
        "no subject": {"sub": None},
        "an empty subject": {"sub": ""},
        "a subject that is no text": {"sub": 7},
        "a revoked pepper": {"pepper": "an old one"},
        "no pepper": {"pepper": None},
        "a pepper that is no text": {"pepper": 7},
    }
    return {name: stack.token(ANN, **{**good, **claims}) for name, claims in changed.items()} | {
        "alg=none": unsigned(good, "none"),
        "alg=None": unsigned(good, "None"),
        "another secret": stack.token(ANN, secret="0" * 64, **VALID),
        "HS512": stack.token(ANN, algorithm="HS512", **VALID),
        "EdDSA": jwt.encode(good, Ed25519PrivateKey.generate(), algorithm="EdDSA"),
        "a model token": mint_model_token(bytes.fromhex(stack.key("model-token")), ANN, issued_at=now),
        "no signature": right.rpartition(".")[0] + ".",
        "another head": f"{unsigned(good, 'none').partition('.')[0]}.{rest}",
        "only a head": head,
        "not a token": "let-me-in",
        "nothing": "",
        "endless": "x" * 20_000,
        "not in ASCII": "tök€n",
    }


def test_no_forged_token_is_a_user(home: tuple[WholeStack, Visitor]) -> None:
    stack, ann = home
    for name, token in forged(stack).items():
        caller = stack.caller()
        headers = {"Authorization": f"Bearer {token}".strip().encode()}
        for method, path in (("GET", "/api/me"), ("DELETE", "/api/openclaw/instance"), ("POST", "/api/threads")):
            answer = caller.request(method, path, headers=headers)
            assert answer.status_code < 500, (name, answer.text)
            body = refusal(answer, 400 if answer.status_code == 400 else 401)
            assert token == "" or token not in answer.text, name
            assert body["error_detail"]["code"] in ("unauthenticated", "malformed"), (name, body)
    for headers in (
        {"Authorization": "Basic YW5uOmFubg=="},
        {"X-OA-Internal-Key": "wrong-key-wrong-key", "X-OA-User-Id": ANN},
        {"X-OA-User-Id": ANN},
        {"x-internal-api-key": stack.key("oa-internal-key"), "X-OA-User-Id": ANN},
        {"Cookie": f"hatchery_session={unsigned({'sub': ANN}, 'none')}"},
        {"X-Forwarded-User": ANN},
        {},
    ):
        refusal(stack.caller().request("GET", "/api/me", headers=headers), 401, "unauthenticated")
    own = {"Cookie": f"hatchery_session={stack.token(ANN, **VALID)}", "Origin": "https://elsewhere.example"}
    refusal(stack.caller().request("POST", "/api/openclaw/instance/stop", headers=own), 403, "foreign_origin")
    assert ann.instance()["status"] == "ready"


def test_no_forged_token_is_a_machine(home: tuple[WholeStack, Visitor]) -> None:
    stack, ann = home
    seed, now = bytes.fromhex(stack.key("model-token")), int(time.time())
    machine = ann.instance()["machine_id"]
    private, claims = Ed25519PrivateKey.from_private_bytes(seed), {"sub": machine, "aud": MODEL_AUDIENCE, "iat": now}
    kind = {"typ": "model+jwt"}
    public = private.public_key().public_bytes_raw()
    tokens = {
        "another key": jwt.encode(claims, Ed25519PrivateKey.generate(), algorithm="EdDSA", headers=kind),
        "another audience": jwt.encode({**claims, "aud": "hatchery"}, private, algorithm="EdDSA", headers=kind),
        "another type": jwt.encode(claims, private, algorithm="EdDSA"),
        "expired": jwt.encode({**claims, "exp": now - 60}, private, algorithm="EdDSA", headers=kind),
        "signed by the public key": jwt.encode(claims, public.hex(), algorithm="HS256", headers=kind),
        "alg=none": jwt.encode(claims, None, algorithm="none", headers=kind),
        "another machine": mint_model_token(seed, "mch_unknown", issued_at=now),
        "a website token": stack.token(ANN, **VALID),
        "nothing": "",
        "not a token": "let-me-in",
    }

    def answer(token: str) -> httpx.Response:
        body = {"model": "demo", "messages": [{"role": "user", "content": "hello"}]}
        url, headers = (
            f"http://127.0.0.1:{stack.port + 2}/llm/v1/chat/completions",
            {"authorization": f"Bearer {token}".strip()},
        )
        return httpx.post(url, json=body, headers=headers, timeout=30, trust_env=False)

    for name, token in tokens.items():
        refused = answer(token)
        assert refused.status_code == 401, (name, refused.text)
        assert refused.json()["error"]["code"] == "unauthorized", name
        assert token == "" or token not in refused.text, name
    assert answer(mint_model_token(seed, machine, issued_at=now)).status_code == 200


def test_what_is_unknown_is_not_found(home: tuple[WholeStack, Visitor]) -> None:
    stack, ann = home
    bob = stack.visitor("bob@example.com", env="production")
    for verb in ("start", "stop", "restart"):
        refusal(bob.request("POST", f"/api/openclaw/instance/{verb}"), 404)
        refusal(ann.request("POST", f"/api/openclaw/instance/{verb}", params={"name": "unknown"}), 404)
    refusal(bob.request("POST", "/api/openclaw/chat", json={"message": "anybody?"}), 404)
    refusal(bob.request("GET", "/api/openclaw/sessions"), 404)
    for path in ("/api/operations/op_unknown", "/api/runs/run_unknown", "/api/threads/thd_unknown", "/api/nowhere"):
        refusal(ann.request("GET", path), 404)
    refusal(stack.runtime("bob@example.com").request("GET", "/v1/status"), 404, "instance_unknown")
    refusal(stack.runtime(ANN, x_oa_instance_id="ins_unknown").request("GET", "/v1/status"), 404, "instance_unknown")
    refusal(stack.runtime(ANN, x_oa_instance_id="../ins").request("GET", "/v1/status"), 400, "invalid_input")
