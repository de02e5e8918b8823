"""Everything that a program of this host, or a neighbour's instance, could try at a gateway's port."""

from __future__ import annotations

import itertools
import json
from collections.abc import Generator, Sequence
from typing import Any

import httpx
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

REFUSED = (401, 403)
ATTRIBUTIONS: tuple[dict[str, str], ...] = (
    {},
    {"x-forwarded-for": "192.0.2.1", "x-forwarded-proto": "http", "x-forwarded-host": "instance.localhost"},
    {"x-forwarded-for": "127.0.0.1", "x-forwarded-proto": "http"},
    {"forwarded": "for=192.0.2.1;proto=http", "x-real-ip": "192.0.2.1", "x-forwarded-proto": "http"},
)
_IDENTITY = (
    "x-forwarded-user", "x-forwarded-email", "x-forwarded-preferred-username", "x-forwarded-login", "x-auth-request-user",
    "x-auth-request-email", "x-auth-request-preferred-username", "x-authenticated-user", "x-remote-user", "remote-user",
    "x-user", "x-user-email", "x-webauth-user", "x-openclaw-user", "x-openclaw-identity", "x-openclaw-token",
    "x-openclaw-password", "x-openclaw-scopes", "x-openclaw-session-key", "x-openclaw-agent-id", "x-openclaw-account-id",
    "x-openclaw-message-channel", "cf-access-authenticated-user-email", "x-pomerium-claim-email", "tailscale-user-login",
    "tailscale-user-name", "x-hatchery-user", "x-hatchery-identity",
)  # fmt: skip
_CLIENTS = (("gateway-client", "backend"), ("cli", "cli"), ("openclaw-control-ui", "webchat"))


def attempts(
    identities: Sequence[str], secrets: Sequence[str], header_names: Sequence[str] = ()
) -> list[dict[str, str]]:
    """Header sets: every documented header at once, per way of being forwarded and per name; then each secret as a bearer."""
    found: list[dict[str, str]] = [dict(where) for where in ATTRIBUTIONS]
    for where, who in itertools.product(ATTRIBUTIONS, identities):
        found.append({**where, **dict.fromkeys(_IDENTITY, who)})
        found += [{**where, name: who} for name in header_names]
    for where, secret in itertools.product(ATTRIBUTIONS, secrets):
        found.append({**where, "authorization": f"Bearer {secret}", **dict.fromkeys(_IDENTITY, identities[0])})
    return found


def http_answers(url: str, headers: dict[str, str]) -> Generator[tuple[str, int]]:
    """The statuses of the gateway's HTTP doors for these headers."""
    bodies: dict[str, Any] = {
        "/tools/invoke": {"tool": "sessions_list", "args": {}},
        "/v1/responses": {"model": "openclaw", "input": "let me in"},
    }
    for path, body in bodies.items():
        answer = httpx.post(f"{url}{path}", json=body, headers=headers, timeout=30, trust_env=False)
        yield path, answer.status_code


def greeted(url: str, headers: dict[str, str], *, auth: dict[str, str] | None = None) -> list[tuple[str, str]]:
    """The kinds of client that get a hello over WebSocket with these headers."""
    return [client for client in _CLIENTS if _is_greeted(url, headers, client, auth)]


def _is_greeted(url: str, headers: dict[str, str], client: tuple[str, str], auth: dict[str, str] | None) -> bool:
    said = {
        "minProtocol": 4,
        "maxProtocol": 4,
        "client": {"id": client[0], "version": "1", "platform": "linux", "mode": client[1]},
        "role": "operator",
        "scopes": ["operator.read"],
        **({"auth": auth} if auth else {}),
    }
    try:
        address = url.replace("http", "ws", 1)
        with connect(address, additional_headers=headers, open_timeout=30, proxy=None) as socket:
            socket.recv(30)  # the challenge
            socket.send(json.dumps({"type": "req", "id": "1", "method": "connect", "params": said}))
            return bool(json.loads(socket.recv(30)).get("ok"))
    except (InvalidStatus, ConnectionClosed):
        return False
