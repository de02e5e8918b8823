"""What an operator can set about the provisioner."""

from __future__ import annotations

from pathlib import Path

from hatchery_common.settings import Settings
from pydantic import Field
from pydantic_settings import SettingsConfigDict


class ProvisionerSettings(Settings):
    """Machines of this installation; the paths are those of the process driver."""

    model_config = SettingsConfigDict(env_prefix="HATCHERY_PROVISIONER_")

    machines_dir: Path = Field(description="directory of the machines; other users must be able to pass through it")
    node: Path = Field(description="path of the Node binary that runs gateways")
    openclaw: Path = Field(description="path of openclaw.mjs")
    port_first: int = Field(default=8900, ge=1, le=65335, description="first port of gateways on loopback")
    port_count: int = Field(
        default=100, ge=1, le=100, description="ports for gateways; each controller answers 100 above its gateway"
    )
    uid_first: int = Field(
        default=62000, ge=1000, description="first of the users that gateways run as, when we are root"
    )
    uid_count: int = Field(default=1000, ge=1, description="users for gateways")
    separate_users: bool = Field(default=True, description="as root, run each gateway under a user of its own")
    trust_all_users: bool = Field(
        default=False,
        description="where gateways share one user of the host, serve more than one user of ours: each reaches the others' data",
    )
    model_base_url: str = Field(
        default="http://127.0.0.1:8802/llm/v1", description="where machines reach the model gateway"
    )
    model_id: str = Field(default="demo", description="model that machines use unless their owner chooses another")
    model_context_window: int = Field(default=128_000, ge=1, description="context window of that model, in tokens")
    model_max_tokens: int = Field(default=8_000, ge=1, description="longest answer of that model, in tokens")
    start_deadline_s: float = Field(
        default=180.0, gt=0, description="longest time from a wish to ready; counted anew by a new owner"
    )
    stop_grace_s: float = Field(default=20.0, ge=0, description="time a gateway gets to end by itself")
    drain_s: float = Field(default=0.3, ge=0, description="time between closing a route and stopping its machine")
    sweep_every_s: float = Field(default=60.0, gt=0, description="how often orphans are looked for")
    min_free_mib: int = Field(default=256, ge=0, description="free space below which no machine is started")
    stop_machines_on_exit: bool = Field(
        default=False, description="stop all machines when the provisioner is told to end (desired state stays)"
    )
    gateway_environment: dict[str, str] = Field(
        default_factory=dict, description="JSON object of variables for every gateway process"
    )
