"""The directory of one instance on this host: labels, what a boot left behind, and its removal."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import psutil
from hatchery_common.log import redact_text

from hatchery_provisioner.adapters.process import remains, removal
from hatchery_provisioner.domain.errors import DriverTransient
from hatchery_provisioner.domain.reasons import Reason

_LABELS = "machine.json"
_LOCKS = Path("/tmp")  # noqa: S108 - OpenClaw keeps its locks there whatever TMPDIR says


@dataclass(frozen=True)
class Labels:
    """Whose machine this is, and the process that was started for it; a pid counts only with its start time."""

    instance_id: str
    machine_id: str
    generation: int
    epoch: int
    operation_id: str | None = None
    pid: int | None = None
    started_ticks: int | None = None


_NAMES = frozenset(one.name for one in fields(Labels))


class LabelsBroken(DriverTransient):
    """There are labels and nobody can tell whose: neither is this machine here, nor is it not."""


@dataclass(frozen=True)
class InstanceDirectory:
    """`<machines>/<instance id>`: the root of a controller, ours; inside it the gateway's user owns its own directories."""

    root: Path

    @property
    def log(self) -> Path:
        return self.root / "logs" / "controller.log"

    def create(self) -> None:
        """Make it passable for the gateway's user and readable for nobody else."""
        self.root.mkdir(mode=0o711, parents=True, exist_ok=True)
        self.root.chmod(0o711)
        (self.root / "logs").mkdir(mode=0o700, exist_ok=True)

    def labels(self) -> Labels | None:
        """The machine that lives here, or None; what a newer version added is passed over.

        Raises LabelsBroken, and DriverTransient when they cannot be read now.
        """
        text = self._read(_LABELS)
        if text is None:
            return None
        try:
            found: dict[str, Any] = json.loads(text)
            return Labels(**{name: value for name, value in found.items() if name in _NAMES})
        except (ValueError, TypeError, AttributeError) as error:
            told = f"{_LABELS} in the instance's directory is broken"
            raise LabelsBroken(Reason.LABELS_UNREADABLE, told) from error

    def _read(self, name: str) -> bytes | None:
        """The content, None only when there is no such file: one that cannot be read may say anything."""
        try:
            return (self.root / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            told = f"{error.strerror or type(error).__name__} while reading {name} in the instance's directory"
            raise DriverTransient("host_refused", told) from error

    def write_labels(self, labels: Labels) -> None:
        """Replace the labels atomically and durably."""
        draft = self.root / f".{_LABELS}"
        file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(file, "wb") as out:
            out.write(json.dumps(asdict(labels)).encode())
            out.flush()
            os.fsync(out.fileno())
        draft.replace(self.root / _LABELS)

    def forget_machine(self) -> None:
        """Remove what belongs to a machine and not to the data."""
        for name in (_LABELS, f".{_LABELS}", "controller.json", "controller.lock"):
            (self.root / name).unlink(missing_ok=True)

    def controller_record(self) -> dict[str, Any]:
        """What the controller wrote about itself and its gateway; empty when it is missing or broken.

        Raises DriverTransient when it cannot be read now.
        """
        text = self._read("controller.json")
        try:
            found: object = json.loads(text or b"")
        except ValueError:
            return {}
        return dict(found) if isinstance(found, dict) else {}  # pyright: ignore[reportUnknownArgumentType]

    def log_tail(self, lines: int) -> list[str]:
        """The newest lines of the gateway's log, or of the controller's if there are none."""
        for path in (self.root / "logs" / "gateway.log", self.log):
            found = _tail(path, lines)
            if found:
                return found
        return []

    def last_words(self) -> str:
        """How a machine that ended left, for people."""
        tail = self.log_tail(1)
        return f"the machine ended; its log's last line: {redact_text(tail[-1])}"[:500] if tail else "the machine ended"

    def remove(self, uid: int | None) -> None:
        """Remove everything, locks first: their names follow from paths that must still be there.

        What lies in places that all users share goes last: what a stranger put there keeps no tenant's data.
        """
        for path in self._locks(uid):
            removal.remove(path)
        removal.remove(self.root)
        if uid is not None and not _is_at_work(uid):  # another stack of this host may use the same user
            for name in (f"openclaw-state-locks-{uid}", f".openclaw-terminal-staging-{uid}", f"openclaw-{uid}"):
                with contextlib.suppress(OSError):  # a stranger may have taken the name
                    removal.remove(_LOCKS / name)
            remains.remove_of(uid)

    def _locks(self, uid: int | None) -> Iterator[Path]:
        """OpenClaw's lock files of this state directory, named by a hash of each database's real path."""
        owner = os.getuid() if uid is None else uid
        directory = _LOCKS / f"openclaw-state-locks-{owner}"
        if not _is_owned(directory, owner):
            return
        state = self.root.resolve() / "state"
        databases = {state / "state" / "openclaw.sqlite", *_databases(state)}  # each agent has one of its own
        for database in databases:
            name = hashlib.sha256(str(database).encode()).hexdigest()[:8]
            yield from directory.glob(f"*.{name}.lock.sqlite*")


def _is_owned(directory: Path, uid: int) -> bool:
    """Whether this is a directory of the user: one that a stranger made in its place holds no locks of ours."""
    try:
        found = directory.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == uid


def _databases(below: Path) -> Iterator[Path]:
    """The databases in a tree of any depth; where no path reaches, no program has opened one."""
    waiting = [str(below)]
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif entry.name.endswith(".sqlite"):
                    yield Path(entry.path)


def _tail(path: Path, lines: int) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 64 * 1024))
            return file.read().decode(errors="replace").splitlines()[-lines:]
    except OSError:
        return []


def _is_at_work(uid: int) -> bool:
    """Whether a process of this user lives."""
    return any(
        process.info["uids"] and process.info["uids"].real == uid and process.info["status"] != psutil.STATUS_ZOMBIE
        for process in psutil.process_iter(["uids", "status"])
    )
