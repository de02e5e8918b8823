"""OpenClaw at its pinned version: `npm ci` from our lock without scripts, then its one lifecycle script, into the cache."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

from hatchery_cli.embedded.cache import cache_root, install_once, is_complete
from hatchery_cli.embedded.node import npm_cli, wheel_node
from hatchery_cli.errors import DiskFull, InstallFailed, NpmUnreachable

LOCK = Path(__file__).parent / "openclaw"
_PACKAGE = "node_modules/openclaw"
_KEY_FILES = (
    f"{_PACKAGE}/openclaw.mjs",
    f"{_PACKAGE}/package.json",
    "package-lock.json",
    "node_modules/.package-lock.json",
)
_LIFECYCLE = "scripts/postinstall-bundled-plugins.mjs"
_PENDING = ".openclaw-lifecycle-pending"
_DEADLINE_S = 900
_NETWORK = re.compile(
    r"ENOTFOUND|ECONNREFUSED|ECONNRESET|ETIMEDOUT|EAI_AGAIN|ENETUNREACH|ERR_SOCKET|network|E40[134]|E5\d\d"
)

Progress = Callable[[int, int], None]


def version() -> str:
    """The pinned version."""
    return str(json.loads((LOCK / "package.json").read_text())["dependencies"]["openclaw"])


def fingerprint() -> str:
    """What the installation is made from: the hash of the lock."""
    return hashlib.sha256((LOCK / "package-lock.json").read_bytes()).hexdigest()


def entry_name() -> str:
    """The name of the cache entry: one per version and lock."""
    return f"openclaw-{version()}-{fingerprint()[:8]}"


def path() -> Path:
    """Where openclaw.mjs lies once it is installed."""
    return cache_root() / entry_name() / _PACKAGE / "openclaw.mjs"


def is_installed() -> bool:
    """Whether this version lies whole in the cache."""
    return is_complete(cache_root() / entry_name(), fingerprint(), _KEY_FILES)


def ensure_openclaw(progress: Progress | None = None) -> Path:
    """The path of openclaw.mjs, installed on first use; raises NpmUnreachable, DiskFull or InstallFailed."""

    def build(place: Path) -> None:
        for name in ("package.json", "package-lock.json"):
            shutil.copyfile(LOCK / name, place / name)
        _npm_ci(place, progress or (lambda _done, _total: None))
        _finish_lifecycle(place / _PACKAGE)

    return install_once(entry_name(), fingerprint(), _KEY_FILES, build, room_mib=1200) / _PACKAGE / "openclaw.mjs"


def _npm_ci(place: Path, progress: Progress) -> None:
    total = _count_top(json.loads((place / "package-lock.json").read_text())["packages"])
    command = [str(wheel_node()), str(npm_cli()), "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--omit=dev",
               "--no-update-notifier", "--loglevel=error",
               "--fetch-retries=3", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=5000"]  # fmt: skip
    child = subprocess.Popen(
        command, cwd=place, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=_environment(), umask=0o022, start_new_session=True,
    )  # fmt: skip
    over = threading.Event()
    watcher = threading.Thread(target=_report, args=(place / "node_modules", total, progress, over), daemon=True)
    watcher.start()
    try:
        output, _ = child.communicate(timeout=_DEADLINE_S)
    except BaseException as error:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            raise NpmUnreachable(f"npm did not finish within {_DEADLINE_S} s", hint=_network_hint()) from error
        raise
    finally:
        over.set()
        watcher.join()
    if child.returncode != 0:
        raise failure(output)
    progress(total, total)


def failure(output: str) -> NpmUnreachable | DiskFull | InstallFailed:
    """The typed error for what npm printed."""
    text = _gist(output)
    if "ENOSPC" in output:
        return DiskFull("no space left while installing OpenClaw", hint="free some space or set HATCHERY_CACHE")
    if "EINTEGRITY" in output:
        return InstallFailed(
            f"a downloaded package is not the one that was locked: {text}",
            hint="clear npm's cache (npm cache clean --force) and try again; if that repeats, suspect the mirror",
        )
    if _NETWORK.search(output):
        return NpmUnreachable(f"npm cannot reach its registry: {text}", hint=_network_hint())
    return InstallFailed(f"npm ci failed: {text}", hint="see the text above, then run it again")


def _gist(output: str) -> str:
    """What npm said, without stack traces and frames of objects."""
    lines = [line.removeprefix("npm error").strip() for line in output.splitlines() if line.startswith("npm error")]
    kept = [line for line in lines if line and not line.startswith(("at ", "}", "{", "A complete log"))]
    return "; ".join(kept[:4])[:600] or output.strip()[-400:]


def _network_hint() -> str:
    return (
        "check the network, the proxy variables and the registry in ~/.npmrc (npm config get registry), then try again"
    )


def _environment() -> dict[str, str]:
    """Our environment, without what would change what npm installs."""
    dropped = {"NODE_OPTIONS", "NODE_ENV", "NODE_COMPILE_CACHE", "npm_config_prefix", "npm_config_global"}
    # the package's own script runs with it: no secret or setting of ours is its business
    kept = {name: value for name, value in os.environ.items() if name not in dropped and not _is_ours(name)}
    return kept | {"PATH": f"{wheel_node().parent}{os.pathsep}{os.environ.get('PATH', '')}"}


def _is_ours(name: str) -> bool:
    return name.startswith(("HATCHERY_", "NEXTAUTH_", "INTERNAL_API_", "OA_INTERNAL_"))


def _count_top(packages: dict[str, object]) -> int:
    return sum(1 for name in packages if name.count("node_modules/") == 1)


def _report(directory: Path, total: int, progress: Progress, over: threading.Event) -> None:
    """Report how many packages lie there; npm itself says nothing a program could read."""
    while not over.wait(0.3):
        progress(min(_count_unpacked(directory), total), total)


def _count_unpacked(directory: Path) -> int:
    """Packages whose package.json has arrived; npm makes all the empty directories at once."""
    return sum(1 for pattern in ("*/package.json", "@*/*/package.json") for _ in directory.glob(pattern))


def _finish_lifecycle(package: Path) -> None:
    """Run the one script that the package needs; else the first start, by a user who may not write here, would fail."""
    done = subprocess.run(
        [str(wheel_node()), _LIFECYCLE], cwd=package, env=_environment(), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=120, umask=0o022,
    )  # fmt: skip
    if done.returncode != 0 or (package / _PENDING).exists():
        raise InstallFailed(
            f"OpenClaw's own set-up script failed: {(done.stdout + done.stderr).strip()[-600:]}",
            hint="see the text above, then run it again",
        )
