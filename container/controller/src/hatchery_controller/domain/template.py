"""The gateway's configuration: our template under the user's allowed overrides, with operator paths that nobody unlocks."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from hatchery_controller.domain.bundle import Bundle, ModelSpec
    from hatchery_controller.domain.layout import Layout

MODEL_KEY_VARIABLE = "HATCHERY_LLM_KEY"
PROVIDER = "hatchery"

OWNER_SCOPES = ("operator.admin",)
SERVICE_SCOPES = (
    "operator.read", "operator.write", "operator.approvals", "operator.questions", "operator.pairing",
)  # fmt: skip
CONTROLLER_SCOPES = ("operator.admin",)  # gateway.suspend.prepare demands it

# What a user may configure at all. A list of what is allowed, because the gateway's next version may bring keys we do not know.
ALLOWED = frozenset(
    {
        "acp", "agents", "approvals", "attachments", "bindings", "broadcast", "browser", "channels", "commands", "cron",
        "gateway", "mcp", "memory", "messages", "models", "plugins", "session", "skills", "talk", "tools", "transcripts",
        "tts", "ui",
    }
)  # fmt: skip

# Inside the allowed sections these paths are the operator's. Of `gateway` only the named leaves are the user's.
LOCKED: tuple[tuple[str, ...], ...] = (
    ("models", "mode"),
    ("models", "catalogRefresh"),
    ("models", "providers", PROVIDER),
    ("agents", "defaults", "workspace"),
    ("session", "store"),
)
GATEWAY_OPEN: tuple[tuple[str, ...], ...] = (
    ("gateway", "tools", "deny"),
    ("gateway", "controlUi", "sessionObserver"),
    ("gateway", "controlUi", "automaticallyFetchFavicons"),
    ("gateway", "http", "endpoints", "chatCompletions"),
)


def controller_identity(machine_id: str) -> str:
    """The identity under which the controller itself speaks to its gateway; no other machine knows it."""
    return f"ctl@{machine_id}"


def render_config(bundle: Bundle, layout: Layout) -> tuple[dict[str, Any], list[str]]:
    """The configuration to write, and the overrides that were refused, as dotted paths."""
    ignored: list[str] = []
    config = _template(bundle, layout)
    _merge(config, bundle.overrides, (), ignored)
    return config, ignored


def _template(bundle: Bundle, layout: Layout) -> dict[str, Any]:
    agents: dict[str, Any] = {
        "model": {"primary": f"{PROVIDER}/{bundle.model.id}"},
        "workspace": str(layout.workspace),
        "heartbeat": {"every": "0m"},  # each tick would be a paid model call
        "utilityModel": "",  # titles, recaps and narration make calls of their own
    }
    template: dict[str, Any] = {
        "gateway": _gateway(bundle),
        "logging": {
            "file": str(layout.temporary / "openclaw.log"),  # the default is one file for all gateways of a host
            "maxFileBytes": 5_000_000,
        },
        "models": {
            "mode": "replace",
            "catalogRefresh": {"enabled": False},
            "providers": {PROVIDER: _provider(bundle.model)},
        },
        "agents": {"defaults": agents},
        "plugins": {"entries": {"memory-core": {"config": {"dreaming": {"enabled": False}}}}},
        "skills": {"workshop": {"autonomous": {"mode": "off"}}},
        "update": {"checkOnStart": False, "auto": {"enabled": False}},
        "telemetry": {"enabled": False},
        "discovery": {"mdns": {"mode": "off"}},
    }
    if bundle.gateway.allow_loopback:
        # Only the process driver allows loopback: there the agent's commands run on the operator's own machine.
        template["tools"] = {"exec": {"mode": "ask"}}
    return template


def _gateway(bundle: Bundle) -> dict[str, Any]:
    given = bundle.gateway
    controller = controller_identity(bundle.machine_id)
    proxy: dict[str, Any] = {
        "userHeader": given.user_header,
        "requiredHeaders": list(given.required_headers),
        "allowUsers": [given.owner, given.service, controller],
        "allowLoopback": given.allow_loopback,
    }
    scopes = {
        given.owner: list(OWNER_SCOPES),
        given.service: list(SERVICE_SCOPES),
        controller: list(CONTROLLER_SCOPES),
    }
    return {
        "mode": "local",
        "port": given.port,
        "bind": given.bind,
        "trustedProxies": list(given.trusted_proxies),
        "auth": {"mode": "trusted-proxy", "identityScopes": scopes, "trustedProxy": proxy},
        "controlUi": {
            "allowedOrigins": list(given.allowed_origins),
            "sessionObserver": False,
            "automaticallyFetchFavicons": False,
            "communityInvite": False,
        },
        "http": {"endpoints": {"responses": {"enabled": True}}},
        "tools": {"allow": ["sessions_send"]},
    }


def _provider(model: ModelSpec) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "id": model.id,
        "name": model.id,
        "reasoning": False,
        "input": ["text"],
        "cost": {"input": 0, "output": 0, "cacheRead": 0, "cacheWrite": 0},
        "contextWindow": model.context_window,
        "maxTokens": model.max_tokens,
    }
    key = "${" + MODEL_KEY_VARIABLE + "}"  # by reference: the token itself stays out of the file
    return {"baseUrl": model.base_url, "apiKey": key, "api": "openai-completions", "models": [entry]}


def _is_locked(path: tuple[str, ...]) -> bool:
    """Whether this path, or one above it, belongs to the operator."""
    if path[0] not in ALLOWED:
        return True
    if path[0] == "gateway":
        return not any(path[: len(free)] == free[: len(path)] for free in GATEWAY_OPEN)
    return any(path[: len(locked)] == locked for locked in LOCKED)


def _holds_locked(path: tuple[str, ...]) -> bool:
    """Whether something below this path belongs to the operator."""
    if path[0] == "gateway":
        return path not in GATEWAY_OPEN and any(free[: len(path)] == path for free in GATEWAY_OPEN)
    return any(locked[: len(path)] == path for locked in LOCKED)


def _merge(target: dict[str, Any], given: dict[str, Any], above: tuple[str, ...], ignored: list[str]) -> None:
    """Merges `given` into `target` in place. A null takes our default away, so the gateway's own one counts."""
    for key, value in given.items():
        path = (*above, key)
        # `$include` and its kind would let a file answer for paths that we lock.
        if key.startswith("$") or _is_locked(path):
            ignored.append(".".join(path))
        elif isinstance(value, dict):
            below = target.setdefault(key, {})
            if isinstance(below, dict):
                _merge(cast("dict[str, Any]", below), cast("dict[str, Any]", value), path, ignored)
            elif _holds_locked(path):
                ignored.append(".".join(path))
            else:
                target[key] = {}
                _merge(target[key], cast("dict[str, Any]", value), path, ignored)
        elif _holds_locked(path):
            ignored.append(".".join(path))
        elif value is None:
            target.pop(key, None)
        else:
            target[key] = _without_directives(value, path, ignored)


def _without_directives(value: object, path: tuple[str, ...], ignored: list[str]) -> object:
    """A copy of a list or scalar in which no object carries a `$` directive."""
    if isinstance(value, list):
        return [_without_directives(item, path, ignored) for item in cast("list[object]", value)]
    if isinstance(value, dict):
        kept: dict[str, object] = {}
        for key, item in cast("dict[str, object]", value).items():
            if key.startswith("$"):
                ignored.append(".".join((*path, key)))
            else:
                kept[key] = _without_directives(item, (*path, key), ignored)
        return kept
    return copy.copy(value)
