"""Reads openclaw.json as strictly as the real gateway: what that refuses with exit 78 is refused here with the same text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_VARIABLE = re.compile(r"\$\{([A-Z][A-Z0-9_]*)\}")
_ANY: dict[str, Any] = {}
_ROOT_KEYS = [
    "$schema",
    "meta",
    "env",
    "wizard",
    "diagnostics",
    "logging",
    "cli",
    "update",
    "browser",
    "ui",
    "secrets",
    "auth",
    "acp",
    "models",
    "nodeHost",
    "agents",
    "tools",
    "bindings",
    "broadcast",
    "audio",
    "media",
    "messages",
    "commands",
    "approvals",
    "session",
    "web",
    "channels",
    "cron",
    "hooks",
    "discovery",
    "canvasHost",
    "talk",
    "gateway",
    "memory",
    "mcp",
    "skills",
    "plugins",
    "surfaces",
    "security",
    "crestodian",
    "proxy",
    "transcripts",
    "accessGroups",
    "telemetry",
    "attachments",
    "tts",
]
_GATEWAY_KEYS = [
    "port",
    "mode",
    "bind",
    "customBindHost",
    "controlUi",
    "auth",
    "trustedProxies",
    "allowRealIpFallback",
    "tools",
    "webchat",
    "handshakeTimeoutMs",
    "channelHealthCheckMinutes",
    "tailscale",
    "remote",
    "reload",
    "tls",
    "http",
    "push",
    "nodes",
    "terminal",
]
_AUTH_KEYS = [
    "mode",
    "token",
    "password",
    "allowTailscale",
    "rateLimit",
    "trustedProxy",
    "identityScopes",
    "identityAgents",
    "groupScopes",
    "groupAgents",
]
_TRUSTED_PROXY_KEYS = [
    "userHeader",
    "requiredHeaders",
    "allowUsers",
    "allowLoopback",
    "deviceAutoApprove",
    "groupsHeader",
]
_NEVER_UNKNOWN = {
    "": _ROOT_KEYS,
    "gateway": _GATEWAY_KEYS,
    "gateway.auth": _AUTH_KEYS,
    "gateway.auth.trustedProxy": _TRUSTED_PROXY_KEYS,
}
_MISSING_MODE = (
    "Gateway start blocked: existing config is missing gateway.mode. Treat this as suspicious or clobbered config. Re-run "
    "`openclaw onboard --mode local` or `openclaw setup`, set gateway.mode=local manually, or pass --allow-unconfigured."
)
_REPAIR = 'Run "openclaw doctor --fix" to repair, then retry.'


class ConfigRejected(Exception):
    """The configuration class of failure: the process exits 78 with this text."""


@dataclass(frozen=True)
class Provider:
    """Where chat turns get their model's answer."""

    base_url: str
    api_key: str
    name: str
    model: str


@dataclass(frozen=True)
class Configuration:
    """What the stand-in uses of a valid openclaw.json."""

    port: int
    host: str
    mode: str
    user_header: str
    required_headers: tuple[str, ...]
    allow_users: tuple[str, ...]
    allow_loopback: bool
    trusted_proxies: tuple[str, ...]
    identity_scopes: Mapping[str, tuple[str, ...]]
    allowed_origins: tuple[str, ...]
    responses_enabled: bool
    allowed_tools: tuple[str, ...]
    provider: Provider | None


def read(path: Path, environment: Mapping[str, str], port: int | None = None) -> Configuration:
    """The configuration at `path`; raises ConfigRejected as the real gateway would."""
    try:
        tree = json.loads(path.read_text())
    except (OSError, ValueError):
        tree = {}  # the real one reports unreadable JSON as a missing mode, too
    gateway = tree.get("gateway", _ANY) if isinstance(tree, dict) else _ANY
    if not isinstance(gateway, dict) or gateway.get("mode") not in ("local", "remote"):
        raise ConfigRejected(_MISSING_MODE)
    auth = gateway.get("auth", _ANY)
    bind = gateway.get("bind", "auto")
    if bind != "loopback" and not auth:
        raise ConfigRejected(f"Refusing to bind gateway to {bind} without auth.")
    _refuse_unknown_keys(path, tree)
    if not isinstance(gateway.get("port", 0), int):
        raise _invalid(path, "gateway.port: Invalid input: expected number, received string")
    return _build(path, _substitute(tree, environment), port)


def _refuse_unknown_keys(path: Path, tree: dict[str, Any]) -> None:
    for place, known in _NEVER_UNKNOWN.items():
        node: Any = tree
        for step in filter(None, place.split(".")):
            node = node.get(step, _ANY)
        for name in node:
            if name not in known:
                raise _invalid(path, f'{place or "<root>"}: Unrecognized key: "{name}"')


def _invalid(path: Path, issue: str) -> ConfigRejected:
    return ConfigRejected(f"Gateway failed to start: Invalid config at {path}:\n{issue}\n{_REPAIR}")


def _build(path: Path, tree: dict[str, Any], port: int | None) -> Configuration:
    gateway = tree["gateway"]
    auth = gateway.get("auth", _ANY)
    proxy = auth.get("trustedProxy", _ANY)
    if auth.get("mode") == "trusted-proxy" and not isinstance(proxy.get("userHeader"), str):
        issue = "gateway.auth.trustedProxy.userHeader: Invalid input: expected string, received undefined"
        raise _invalid(path, issue)
    endpoints = gateway.get("http", _ANY).get("endpoints", _ANY)
    return Configuration(
        port=port or gateway.get("port", 18789),
        host="127.0.0.1" if gateway.get("bind", "loopback") == "loopback" else "0.0.0.0",  # noqa: S104 - bind lan means that
        mode=auth.get("mode", "none"),
        user_header=proxy.get("userHeader", "").lower(),
        required_headers=tuple(name.lower() for name in proxy.get("requiredHeaders", ())),
        allow_users=tuple(proxy.get("allowUsers", ())),
        allow_loopback=bool(proxy.get("allowLoopback")),
        trusted_proxies=tuple(gateway.get("trustedProxies", ())),
        identity_scopes={user: tuple(scopes) for user, scopes in auth.get("identityScopes", _ANY).items()},
        allowed_origins=tuple(gateway.get("controlUi", _ANY).get("allowedOrigins", ())),
        responses_enabled=bool(endpoints.get("responses", _ANY).get("enabled")),
        allowed_tools=tuple(gateway.get("tools", _ANY).get("allow", ())),
        provider=_provider(tree),
    )


def _provider(tree: dict[str, Any]) -> Provider | None:
    primary = tree.get("agents", _ANY).get("defaults", _ANY).get("model", _ANY)
    chosen = primary if isinstance(primary, str) else primary.get("primary", "")
    name, _, model = str(chosen).partition("/")
    settings = tree.get("models", _ANY).get("providers", _ANY).get(name)
    if settings is None:
        return None
    return Provider(settings["baseUrl"], str(settings.get("apiKey", "")), name, model)


def _substitute(value: Any, environment: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {name: _substitute(item, environment) for name, item in value.items()}
    if isinstance(value, list):
        return [_substitute(item, environment) for item in value]
    if isinstance(value, str):
        return _VARIABLE.sub(lambda found: environment.get(found[1], ""), value)
    return value
