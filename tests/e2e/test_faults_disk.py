"""A full disk below the machines: who cannot start is told so, who runs goes on, and all is well when there is room again."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from faults import ended, ends_of, faulty_stack
from whole_stack import WholeStack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@contextmanager
def small_disk(stack: WholeStack) -> Generator[Path]:
    """Machines on a file system of 16 MiB; the path is a file that fills it."""
    stack.machines.mkdir(parents=True)
    options = ["-t", "tmpfs", "-o", "size=16m,mode=711", "tmpfs"]
    done = subprocess.run(["mount", *options, str(stack.machines)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
    try:
        yield stack.machines / "filler"
    finally:
        stack("down")
        subprocess.run(["umount", str(stack.machines)], check=True)


def fill(filler: Path) -> None:
    with suppress(OSError), filler.open("ab", buffering=0) as file:
        while True:
            file.write(bytes(4096))


@pytest.mark.skipif(os.getuid() != 0, reason="mounting a file system needs root")
def test_a_full_disk_is_named_and_nothing_is_lost() -> None:
    with (
        faulty_stack(HATCHERY_PROVISIONER_MIN_FREE_MIB="0") as (stack, _),
        small_disk(stack) as filler,
    ):
        stack.up()
        ann = stack.visitor("ann@example.com")
        ann.wish("provision")
        thread = ann.thread()["thread_id"]
        said = ann.say(thread, "before the disk was full")
        fill(filler)

        operation = ann.post("/api/openclaw/instance", {"name": "late"})["operation"]["operation_id"]
        assert ended(ann, operation) == ("failed", "disk_full")
        late = ann.instance(name="late")
        assert late["status"] == "error"
        assert "remedy: free space" in late["message"]
        assert ann.instance()["status"] == "ready"
        ann.wish("delete", name="late")

        ann.wish("stop")
        fill(filler)  # whatever was freed meanwhile
        operation = ann.post("/api/openclaw/instance/start")["operation"]["operation_id"]
        assert ended(ann, operation) in (("failed", "disk_full"), ("failed", "storage_full"))

        filler.unlink()
        ann.wish("start")
        assert ends_of(stack, operation) == ["operation_failed"]
        assert ann.say(thread, "and now?", after=said.last_id).end.event == "run.finished"
        assert "before the disk was full" in [message["text"] for message in ann.history(thread)]
        ann.wish("delete")
