"""The shared cache: what several stacks and other user ids of this machine read, installed once, whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

from hatchery_cli.embedded.places import require_room, require_writable
from hatchery_cli.errors import InstallFailed

_MARKER = ".complete.json"


def cache_root() -> Path:
    """Where the cache lies: HATCHERY_CACHE, else /var/cache/hatchery for root, else the user's own cache."""
    if chosen := os.environ.get("HATCHERY_CACHE"):
        return Path(chosen).absolute()
    if os.geteuid() == 0:
        return Path("/var/cache/hatchery")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hatchery"


def is_complete(entry: Path, fingerprint: str, key_files: Sequence[str]) -> bool:
    """Whether the entry was finished from this very source and its key files still have their sizes."""
    try:
        marker = json.loads((entry / _MARKER).read_text())
        sizes = {name: (entry / name).stat().st_size for name in key_files}
    except (OSError, ValueError):
        return False
    return marker.get("fingerprint") == fingerprint and marker.get("sizes") == sizes


def install_once(
    name: str, fingerprint: str, key_files: Sequence[str], build: Callable[[Path], None], *, room_mib: int
) -> Path:
    """The directory of this entry, built by `build` in a private place and renamed when whole; damaged ones are redone."""
    root = cache_root()
    entry = root / name
    if is_complete(entry, fingerprint, key_files):
        return entry
    require_writable(root, others=os.geteuid() == 0)
    with _locked(root / f".{name}.lock"):
        if is_complete(entry, fingerprint, key_files):
            return entry
        _sweep(root, name)
        require_room(root, room_mib)
        place = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=root))
        try:
            build(place)
            _finish(place, fingerprint, key_files)
            if entry.exists():
                entry.rename(place.with_name(f"{place.name}.old"))
            place.rename(entry)
        finally:
            _sweep(root, name)
    return entry


def _finish(place: Path, fingerprint: str, key_files: Sequence[str]) -> None:
    missing = [name for name in key_files if not (place / name).is_file()]
    if missing:
        raise InstallFailed(
            f"the installation lacks {', '.join(missing)}", hint="run it again; if that repeats, report it with the log"
        )
    place.chmod(0o755)
    sizes = {name: (place / name).stat().st_size for name in key_files}
    (place / _MARKER).write_text(json.dumps({"fingerprint": fingerprint, "sizes": sizes, "at": int(time.time())}))
    (place / _MARKER).chmod(0o644)


def _sweep(root: Path, name: str) -> None:
    """Remove what interrupted installations of this entry left; we hold its lock, so nobody is at work in them."""
    for leftover in root.glob(f".{name}.*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path) -> Generator[None]:
    """Hold a lock that ends with this process, however it ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
