"""container/render-secrets.sh: an operator who is not root may run it again."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[3] / "container/render-secrets.sh"
_HATCHERY = """#!/bin/sh
if [ "$2" = new-root ]; then
    echo abcd
else
    echo "$HATCHERY_ROOT_KEY" >secrets/new && mv -f secrets/new secrets/api.env
fi
"""


def test_it_can_be_repeated_without_root(place: Path) -> None:
    (place / "container").mkdir()
    shutil.copy(SCRIPT, place / "container")
    stub = place / "hatchery"
    stub.write_text(_HATCHERY)
    stub.chmod(0o755)
    user = None
    if os.geteuid() == 0:
        user = 65534
        for path in (place, place / "container"):
            os.chown(path, user, user)
    command = ["sh", str(place / "container/render-secrets.sh")]
    seen: set[str] = set()
    for _ in range(2):
        done = subprocess.run(command, user=user, capture_output=True, text=True, check=False, timeout=30)
        assert done.returncode == 0, done.stderr
        seen.add((place / "secrets/migrate.env").read_text())
    assert len(seen) == 1
    assert {path.stat().st_mode & 0o777 for path in (place / "secrets").iterdir()} == {0o444}
    names = sorted(path.name for path in (place / "secrets").iterdir())
    assert names == ["api.env", "migrate.env", "postgres-password", "root.key"]
