"""A full disk: who cannot start is told so, who runs goes on, and all is well when there is room again."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from faults import ended, ends_of, faulty_stack
from hatchery_cli.embedded.layout import Ports
from hatchery_cli.embedded.probe import all_ready
from whole_stack import WholeStack, eventually, is_alive, kill, whole_stack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@contextmanager
def small_disk(stack: WholeStack, *places: Path, size: str = "16m", mode: int = 0o711) -> Generator[list[Path]]:
    """File systems of this size in these places of a stack; each path is a file that fills one."""
    mounted: list[Path] = []
    try:
        for place in places:
            place.mkdir(parents=True)
            options = ["-t", "tmpfs", "-o", f"size={size},mode={mode:o}", "tmpfs"]
            done = subprocess.run(["mount", *options, str(place)], capture_output=True, text=True, check=False)
            if done.returncode != 0:
                pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
            mounted.append(place)
        yield [place / "filler" for place in places]
    finally:
        stack("down")
        for place in mounted:
            subprocess.run(["umount", str(place)], check=True)


def fill(filler: Path) -> None:
    with suppress(OSError), filler.open("ab", buffering=0) as file:
        while True:
            file.write(bytes(4096))


@pytest.mark.skipif(os.getuid() != 0, reason="mounting a file system needs root")
def test_a_full_disk_is_named_and_nothing_is_lost() -> None:
    with (
        faulty_stack(HATCHERY_PROVISIONER_MIN_FREE_MIB="0") as (stack, _),
        small_disk(stack, stack.machines) as [filler],
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


@pytest.mark.skipif(os.getuid() != 0, reason="mounting a file system needs root")
def test_where_state_and_logs_find_no_room_parts_are_restarted_and_stopped() -> None:
    with (
        whole_stack() as stack,
        small_disk(stack, stack.directory / "run", stack.directory / "logs", size="1m", mode=0o700) as fillers,
    ):
        stack.up()
        up, before = stack.state["pid"], stack.state["parts"]["services"]["pid"]
        for filler in fillers:
            fill(filler)
        kill(before)
        eventually(lambda: not is_alive(before))
        eventually(lambda: asyncio.run(all_ready(Ports(stack.port))), 30)
        fillers[0].unlink()
        eventually(lambda: stack.state["parts"]["services"]["restarts"] == 1, 30)
        fill(fillers[0])
        kill(up, signal.SIGINT)
        eventually(lambda: not is_alive(up), 40)
        assert stack.processes() == []
