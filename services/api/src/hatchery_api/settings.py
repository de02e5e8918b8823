"""The api's settings: HATCHERY_API_*, and the names under which the websites know the same secrets."""

from __future__ import annotations

import ipaddress
from enum import StrEnum

from hatchery_common.settings import Settings
from pydantic import AliasChoices, Field, field_validator, model_validator
from pydantic_settings import SettingsConfigDict


class Access(StrEnum):
    """Who may come in."""

    OPEN = "open"
    WAITLIST = "waitlist"


class ApiSettings(Settings):
    """Everything the api is told; secrets never show in its repr."""

    model_config = SettingsConfigDict(env_prefix="HATCHERY_API_")

    host: str = Field(default="127.0.0.1", description="address the api listens on")
    port: int = Field(default=8800, ge=1, le=65535, description="port the api listens on")
    public_url: str | None = Field(default=None, description="the api's own origin as browsers see it")
    allowed_origins: str = Field(default="", description="comma-separated origins that browsers may call from")
    access: Access = Field(
        default=Access.OPEN, description="open: whoever holds a valid token; waitlist: only the admitted"
    )
    website_jwt_secret: str = Field(
        validation_alias=AliasChoices("website_jwt_secret", "NEXTAUTH_SECRET", "HATCHERY_KEY_WEBSITE_JWT"),
        min_length=32,
        repr=False,
        description="the HS256 secret shared with the website (its text, as UTF-8)",
    )
    website_jwt_secret_previous: str | None = Field(
        default=None, min_length=32, repr=False, description="still accepted while the secret is rotated"
    )
    jwt_issuer: str = Field(default="hatchery", description="required `iss` of website tokens")
    jwt_audience: str = Field(default="hatchery", description="required `aud` of website tokens")
    jwt_environment: str | None = Field(
        default=None,
        validation_alias=AliasChoices("jwt_environment", "WORKER_ENV"),
        description="where set, the token's `env` must equal it",
    )
    cookie_names: str = Field(
        default="hatchery_session,__Host-hatchery_session", description="cookies that may carry the website's token"
    )
    internal_api_key: str = Field(
        validation_alias=AliasChoices(
            "internal_api_key", "INTERNAL_API_SECRET", "KILOCLAW_INTERNAL_API_SECRET", "HATCHERY_KEY_INTERNAL_API_KEY"
        ),
        min_length=16,
        repr=False,
        description="the key of /api/platform/* (x-internal-api-key)",
    )
    internal_api_key_previous: str | None = Field(
        default=None, min_length=16, repr=False, description="still accepted while the key is rotated"
    )
    oa_internal_key: str = Field(
        validation_alias=AliasChoices(
            "oa_internal_key", "OA_INTERNAL_KEY", "OPENAGENTS_INTERNAL_KEY", "HATCHERY_KEY_OA_INTERNAL_KEY"
        ),
        min_length=16,
        repr=False,
        description="the key with which a website's server acts as a user (X-OA-Internal-Key)",
    )
    oa_internal_key_previous: str | None = Field(
        default=None, min_length=16, repr=False, description="still accepted while the key is rotated"
    )
    runtime_service_key: str = Field(
        validation_alias=AliasChoices("runtime_service_key", "HATCHERY_KEY_RUNTIME_SERVICE"),
        min_length=64,
        repr=False,
        description="hex key from which each tenant's X-OpenAgents-Service-Token follows",
    )
    runtime_url: str = Field(
        default="http://127.0.0.1:8801",
        validation_alias=AliasChoices("runtime_url", "HATCHERY_RUNTIME_URL", "OPENCLAW_RUNTIME_URL"),
        description="base URL of the runtime API (runtime-proxy)",
    )
    ingress_url: str | None = Field(
        default=None, description="where an instance opens in a browser; `{instance}` stands for its id"
    )
    app_prefix: str = Field(default="hatchery", description="prefix of the per-user application name (flyAppName)")
    dev_mode: bool = Field(
        default=False,
        validation_alias=AliasChoices("dev_mode", "DEV_MODE"),
        description="requests without credentials act as `dev_user`; loopback only",
    )
    dev_user: str | None = Field(default=None, description="the user id of dev mode")
    max_body_bytes: int = Field(default=262_144, ge=1024, description="larger request bodies get 413")

    @field_validator("runtime_service_key")
    @classmethod
    def _is_hex(cls, value: str) -> str:
        try:
            bytes.fromhex(value)
        except ValueError:
            msg = "must be hex"
            raise ValueError(msg) from None
        return value

    @model_validator(mode="after")
    def _dev_mode_stays_at_home(self) -> ApiSettings:
        if not self.dev_mode:
            return self
        if not self.dev_user:
            msg = "dev mode needs an explicit user: set HATCHERY_API_DEV_USER"
            raise ValueError(msg)
        if not is_loopback(self.host):
            msg = f"dev mode binds to loopback only, not to {self.host}: unset DEV_MODE or set HATCHERY_API_HOST"
            raise ValueError(msg)
        return self

    @property
    def origins(self) -> tuple[str, ...]:
        """Origins that may call from a browser: the listed ones and our own."""
        listed = [origin.strip().rstrip("/") for origin in self.allowed_origins.split(",") if origin.strip()]
        return tuple(listed + ([self.public_url.rstrip("/")] if self.public_url else []))

    @property
    def cookies(self) -> tuple[str, ...]:
        """Cookie names in the order in which they are looked at."""
        return tuple(name.strip() for name in self.cookie_names.split(",") if name.strip())


def is_loopback(host: str) -> bool:
    """Whether the address can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
