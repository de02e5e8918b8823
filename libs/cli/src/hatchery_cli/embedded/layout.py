"""Where a stack keeps what: its data directory, its ports, its root key."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from hatchery_cli.embedded.places import require_writable
from hatchery_cli.embedded.port_range import DEFAULT_PORT
from hatchery_cli.errors import StateDamaged

SERVICES = ("api", "provisioner", "billing", "agent", "runtime-proxy")


def default_directory() -> Path:
    """HATCHERY_DIR, else the usual directory."""
    if chosen := os.environ.get("HATCHERY_DIR"):
        return Path(chosen).absolute()
    return usual_directory()


def usual_directory() -> Path:
    """Where a stack lies that nothing names: /var/lib/hatchery/default for root, else below the user's data directory."""
    if os.geteuid() == 0:
        return Path("/var/lib/hatchery/default")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "hatchery" / "default"


@dataclass(frozen=True)
class Ports:
    """All ports of one stack, from its base."""

    base: int = DEFAULT_PORT

    @property
    def api(self) -> int:
        return self.base

    @property
    def runtime(self) -> int:
        return self.base + 1

    @property
    def llm(self) -> int:
        return self.base + 2

    @property
    def nats(self) -> int:
        return self.base + 20

    @property
    def postgres(self) -> int:
        return self.base + 21

    @property
    def gateways(self) -> tuple[int, int]:
        """First and last port of machines' gateways; a controller's port is its gateway's plus 100."""
        return self.base + 100, self.base + 199

    def health(self, service: str) -> int:
        """The health listener of a service."""
        return self.base + 10 + SERVICES.index(service)

    def of_services(self) -> dict[str, int]:
        """Every port that the services listen on, by name."""
        named = {"api": self.api, "runtime API": self.runtime, "model gateway": self.llm}
        return named | {f"health of {name}": self.health(name) for name in SERVICES}


@dataclass(frozen=True)
class Choices:
    """What the operator chose for this directory; remembered for the next `up` once a stack got ready with it."""

    port: int = DEFAULT_PORT
    nats_url: str | None = None
    database_url: str | None = None
    processes: bool = False  # each service in a process of its own
    trust_all_users: bool = False  # where gateways share one user of the host, serve more than one user

    def part_of(self, service: str) -> str:
        """The part, and so the log, that the service runs in."""
        return service if self.processes else "services"

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Choices:
        """What was stored, as far as this version knows it: a newer one may have kept more."""
        known = {one.name for one in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})


@dataclass(frozen=True)
class Layout:
    """The data directory of one stack. The root may be passed through, everything secret in it is closed."""

    root: Path

    @property
    def nats(self) -> Path:
        return self.root / "nats"

    @property
    def postgres(self) -> Path:
        return self.root / "postgres"

    @property
    def machines(self) -> Path:
        return self.root / "machines"

    @property
    def secrets(self) -> Path:
        return self.root / "secrets"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def root_key_file(self) -> Path:
        return self.root / "root.key"

    @property
    def choices_file(self) -> Path:
        return self.root / "choices.json"

    @property
    def attempt_file(self) -> Path:
        return self.run / "choices.json"

    @property
    def state_file(self) -> Path:
        return self.run / "state.json"

    @property
    def lock_file(self) -> Path:
        return self.run / "up.lock"

    @property
    def exists(self) -> bool:
        """Whether a stack was ever started here."""
        return self.root_key_file.exists()

    def create(self) -> None:
        """Make the directories; raises PlaceUnusable with a remedy."""
        as_root = os.geteuid() == 0
        require_writable(self.root, others=as_root)
        for place, mode in (
            (self.nats, 0o700),
            (self.secrets, 0o700),
            (self.logs, 0o700),
            (self.run, 0o700),
            (self.machines, 0o711 if as_root else 0o700),
        ):
            place.mkdir(mode=mode, exist_ok=True)

    def root_key(self) -> bytes:
        """The root secret: HATCHERY_ROOT_KEY or the file, made on first use.

        Raises StateDamaged when they disagree, when it is no key, and when it is missing beside data that it made.
        """
        given = os.environ.get("HATCHERY_ROOT_KEY", "").strip() or None
        stored = self.root_key_file.read_text().strip() if self.root_key_file.exists() else None
        if given and stored is not None and given != stored:
            raise StateDamaged(
                f"HATCHERY_ROOT_KEY differs from {self.root_key_file}",
                hint="unset the variable, or use the data directory that belongs to this key",
            )
        text = stored if stored is not None else given
        if text is None:
            self._require_fresh()
            text = secrets.token_hex(32)
        try:
            key = bytes.fromhex(text)
        except ValueError:
            key = b""
        if len(key) < 32:
            raise StateDamaged(
                f"the root key is not 32 bytes in hex ({self.root_key_file})",
                hint=f"put {self.root_key_file} back from your backup",
            )
        if stored is None:
            write_private(self.root_key_file, text + "\n")
        return key

    def _require_fresh(self) -> None:
        """Raises StateDamaged where an earlier stack left anything: a new key would shut it out of its own data."""
        left = [self.postgres / "PG_VERSION", self.nats / "jetstream", *self.secrets.glob("*.env")]
        left += [place / "controller.json" for place in self.machines.glob("*")]
        if found := next((path for path in left if path.exists()), None):
            raise StateDamaged(
                f"{self.root_key_file} is missing, and {found} was made with it",
                hint=f"put {self.root_key_file} back from your backup (or set HATCHERY_ROOT_KEY once)",
            )

    def choices(self) -> Choices:
        """What the stack runs with: what an `up` is trying now, else what was proven last."""
        values = read_json(self.attempt_file)
        return Choices.read(values) if values else self.remembered()

    def remembered(self) -> Choices:
        """What the last stack that got ready ran with; the defaults for a new directory."""
        values = read_json(self.choices_file)
        return Choices.read(values or {})

    def attempt(self, choices: Choices) -> None:
        """Use these for the start that follows, without keeping them for another."""
        write_private(self.attempt_file, json.dumps(asdict(choices)) + "\n")

    def remember(self, choices: Choices) -> None:
        """Keep the choices for the next start."""
        write_private(self.choices_file, json.dumps(asdict(choices)) + "\n")
        self.end_attempt()

    def end_attempt(self) -> None:
        """Forget what was tried."""
        self.attempt_file.unlink(missing_ok=True)


def write_private(path: Path, text: str, mode: int = 0o600) -> None:
    """Replace a file at once and whole, readable by us only (or by `mode`)."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(mode)
        Path(name).replace(path)
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()
        raise


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in this file, None when there is no file; raises StateDamaged for anything else."""
    try:
        value: Any = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StateDamaged(f"cannot read {path}: {error}", hint="remove or restore this file") from error
    if not isinstance(value, dict):
        raise StateDamaged(f"{path} does not hold an object", hint="remove or restore this file")
    return value
