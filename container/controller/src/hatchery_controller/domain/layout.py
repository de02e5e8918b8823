"""Where everything of one machine lies under its root directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Layout:
    """The directory tree of one machine."""

    root: Path

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def config(self) -> Path:
        return self.state / "openclaw.json"

    @property
    def workspace(self) -> Path:
        return self.root / "workspace"

    @property
    def home(self) -> Path:
        return self.root / "home"

    @property
    def temporary(self) -> Path:
        return self.root / "tmp"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def record(self) -> Path:
        return self.root / "controller.json"

    @property
    def lock(self) -> Path:
        return self.root / "controller.lock"

    @property
    def of_gateway(self) -> tuple[Path, ...]:
        """The directories that belong to the gateway's user; all others stay ours."""
        return (self.state, self.workspace, self.home, self.temporary)
