"""Settings of the runtime-proxy."""

from __future__ import annotations

from hatchery_common.settings import Settings
from pydantic import AliasChoices, Field
from pydantic_settings import SettingsConfigDict

from hatchery_runtime_proxy.domain.deadlines import StreamLimits


class RuntimeProxySettings(Settings):
    """Listeners, deadlines, limits and the one model provider."""

    model_config = SettingsConfigDict(env_prefix="HATCHERY_RUNTIME_PROXY_")

    host: str = Field(default="127.0.0.1", description="address of the runtime API")
    port: int = Field(
        default=8801,
        validation_alias=AliasChoices("port", "HATCHERY_RUNTIME_PORT"),
        description="port of the runtime API",
    )
    llm_host: str = Field(default="127.0.0.1", description="address of the model gateway")
    llm_port: int = Field(
        default=8802,
        validation_alias=AliasChoices("llm_port", "HATCHERY_LLM_PORT"),
        description="port of the model gateway",
    )
    provider_url: str | None = Field(
        default=None,
        validation_alias=AliasChoices("provider_url", "OPENAI_BASE_URL", "AI_GATEWAY_BASE_URL"),
        description="base URL of the one OpenAI-compatible provider; with a key alone it is OpenAI's own",
    )
    provider_key: str | None = Field(
        default=None,
        validation_alias=AliasChoices("provider_key", "OPENAI_API_KEY", "AI_GATEWAY_API_KEY", "OPENROUTER_API_KEY"),
        description="key of the provider; without it and without a URL only the demo model answers",
        repr=False,
    )
    provider_model: str | None = Field(
        default=None,
        validation_alias=AliasChoices("provider_model", "OPENCLAW_DEFAULT_MODEL"),
        description="model that `default` stands for at the provider",
    )
    demo_delay_ms: int = Field(default=15, ge=0, le=5000, description="pause between the demo model's words")
    gateway_timeout_s: float = Field(default=15.0, gt=0, description="a gateway's answer to one request")
    hello_timeout_s: float = Field(
        default=3.0, gt=0, description="a gateway's hello on a new connection, and its /ready"
    )
    tool_timeout_s: float = Field(default=120.0, gt=0, description="a gateway's answer to a tool's invocation")
    status_s: float = Field(default=0.8, gt=0, le=1.0, description="silence before a stream shows a status event")
    keepalive_s: float = Field(default=15.0, gt=0, description="silence before a stream shows another status event")
    first_byte_s: float = Field(
        default=30.0, gt=0, description="silence of a gateway before a stream ends with an error"
    )
    idle_s: float = Field(
        default=180.0, gt=0, description="silence in the middle of a stream before it ends with an error"
    )
    max_body_bytes: int = Field(default=1_048_576, ge=1024, description="largest body on the runtime API")
    max_model_body_bytes: int = Field(default=20_971_520, ge=1024, description="largest body on the model gateway")
    routes_reread_s: float = Field(default=30.0, gt=0, description="how often all routes are read again")

    @property
    def limits(self) -> StreamLimits:
        """The deadlines of streams."""
        return StreamLimits(self.status_s, self.keepalive_s, self.first_byte_s, self.idle_s)
