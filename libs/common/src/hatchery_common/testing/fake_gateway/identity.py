"""Who a caller is in trusted-proxy mode, by the rules measured on the real gateway."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass

from hatchery_common.testing.fake_gateway.configuration import Configuration

_FORWARDING = ("x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "forwarded", "x-real-ip")


@dataclass(frozen=True)
class Caller:
    """An authenticated user with the scopes that the configuration gives it."""

    user: str
    scopes: tuple[str, ...]

    def allows(self, scope: str) -> bool:
        """Whether the caller has the scope; admin has every one, write includes read."""
        granted = set(self.scopes)
        return (
            scope in granted
            or "operator.admin" in granted
            or (scope == "operator.read" and "operator.write" in granted)
        )


class AttributionRequired(Exception):
    """Forwarded headers from a trusted proxy without a usable client address: 403 on HTTP and on the WebSocket upgrade."""


def is_forwarded(headers: Mapping[str, str]) -> bool:
    """Whether the request came through some proxy."""
    return any(name in headers for name in _FORWARDING)


def attribute(configuration: Configuration, headers: Mapping[str, str], peer: str) -> None:
    """Demands a client address that is not our own; raises AttributionRequired."""
    if not is_forwarded(headers) and _is_loopback(peer):
        return
    client = headers.get("x-forwarded-for", "").split(",")[-1].strip()
    if not client or _is_loopback(client) or client in configuration.trusted_proxies:
        raise AttributionRequired


def authenticate(configuration: Configuration, headers: Mapping[str, str], peer: str) -> tuple[Caller | None, str]:
    """The caller, or None with the real gateway's reason."""
    if configuration.mode != "trusted-proxy":
        return None, "unsupported_mode"
    if peer not in configuration.trusted_proxies:
        return None, "trusted_proxy_untrusted_source"
    if _is_loopback(peer) and not configuration.allow_loopback:
        return None, "trusted_proxy_loopback_source"
    for name in configuration.required_headers:
        if not headers.get(name):
            return None, f"trusted_proxy_missing_header_{name}"
    user = headers.get(configuration.user_header, "").strip()
    if not user:
        return None, "trusted_proxy_user_missing"
    if configuration.allow_users and user not in configuration.allow_users:
        return None, "trusted_proxy_user_not_allowed"
    return Caller(user, configuration.identity_scopes.get(user, ())), ""


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
