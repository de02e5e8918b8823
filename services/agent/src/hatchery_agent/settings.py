"""Settings of the agent service."""

from __future__ import annotations

from hatchery_common.settings import Settings
from pydantic import Field
from pydantic_settings import SettingsConfigDict


class AgentSettings(Settings):
    """Where gateways are reached and how long things may take."""

    model_config = SettingsConfigDict(env_prefix="HATCHERY_AGENT_")

    runtime_url: str = Field(default="http://127.0.0.1:8801", description="base URL of the runtime API")
    concurrency: int = Field(default=16, ge=1, le=500, description="runs worked on at the same time by one process")
    lease_s: float = Field(default=15, ge=1, le=300, description="seconds after which a silent worker's thread is free")
    turn_deadline_s: float = Field(default=600, gt=0, description="seconds a turn may take before it is given up")
    start_deadline_s: float = Field(default=180, ge=0, description="seconds a turn waits for a starting instance")
    recovery_s: float = Field(
        default=20,
        ge=0,
        description="seconds for which OpenClaw may be idle before an interrupted turn counts as not resumed by it",
    )
    max_attempts: int = Field(default=5, ge=1, le=100, description="attempts after which a run is given up")
    orphan_text_s: int = Field(default=86_400, ge=60, description="seconds that a submitted but unposted text is kept")
