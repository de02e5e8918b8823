"""A stack whose gateways fail as a test wishes, and what its streams hold."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from hatchery_cli.operating import operator
from hatchery_cli.rendering import nkey_seed
from hatchery_common.bus.authorization import ADMIN
from hatchery_common.bus.connection import Connection
from hatchery_common.bus.envelope import MESSAGE_ID, Encoded
from hatchery_common.bus.publisher import Publisher
from hatchery_common.bus.scratch import Record
from hatchery_common.ids import new_id
from hatchery_common.testing.fake_gateway import ENTRY
from visitor import Visitor
from whole_stack import WholeStack, whole_stack

_ENDS = {"operation_finished", "operation_failed", "operation_superseded"}
_SCRIPT = f"""
import json, os, pathlib, runpy, sys
place = pathlib.Path(__file__).parent
with (place / "starts").open("a") as starts:
    starts.write(os.environ["OPENCLAW_STATE_DIR"] + "\\n")
plan = json.loads((place / "plan.json").read_text())
print(plan.pop("say", ""), file=sys.stderr, flush=True)
if plan.pop("tell", ""):
    config = pathlib.Path(os.environ["OPENCLAW_CONFIG_PATH"]).read_text()
    print(json.dumps(dict(os.environ)), os.environ, config, json.dumps(json.loads(config)), sep="\\n", file=sys.stderr)
os.environ.update(plan)
runpy.run_path({str(ENTRY)!r}, run_name="__main__")
"""


class Faults:
    """Stands where openclaw.mjs stands; each start of a gateway reads the plan anew."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self.script = place / "openclaw.mjs"
        self.heal()

    def plan(self, **knobs: str) -> None:
        """The fake gateway's knobs from the next start on; first `say` is printed, and with `tell` all that it knows."""
        (self._place / "plan.json").write_text(json.dumps(knobs))

    def heal(self) -> None:
        """Nothing fails any more."""
        self.plan()
        self.script.write_text(_SCRIPT)

    def uninstall(self) -> None:
        """OpenClaw is not there."""
        self.script.unlink()

    def starts(self, instance_id: str) -> int:
        """How often a gateway of this instance was started."""
        starts = self._place / "starts"
        return starts.read_text().count(f"/{instance_id}/") if starts.exists() else 0


@contextmanager
def faulty_stack(topology: str = "one", **environment: str) -> Generator[tuple[WholeStack, Faults]]:
    """A stack, not started yet, and its faults."""
    place = Path(tempfile.mkdtemp(prefix="hatchery-faults-"))
    try:
        faults = Faults(place)
        with whole_stack(topology, HATCHERY_PROVISIONER_OPENCLAW=str(faults.script), **environment) as stack:
            yield stack, faults
    finally:
        shutil.rmtree(place)


def ended(site: Visitor, operation_id: str) -> tuple[str, str | None]:
    """How an operation ended, and why; its stream has exactly one end."""
    last = list(site.follow(f"/api/operations/{operation_id}/events"))[-1]
    return last.event, last.data["data"]["reason"]


def records(stack: WholeStack, stream: str, *subjects: str) -> list[Record]:
    """Everything that a stream of this stack holds."""

    async def read() -> list[Record]:
        async with operator(stack.directory, None, None) as bus:
            return [record async for record in bus.read(stream, subjects=subjects)]

    return asyncio.run(read())


def ends_of(stack: WholeStack, operation_id: str) -> list[str]:
    """The terminal events of an operation on the event log."""
    ends = records(stack, "EVT", *(f"evt.*.instance.{verb}.*" for verb in sorted(_ENDS)))
    return [one.subject.split(".")[3] for one in ends if json.loads(one.data)["operation_id"] == operation_id]


def again(record: Record, identifier: str) -> Encoded:
    """A stored message to be sent once more under this ce-id; JetStream takes it for a new one."""
    kept = {name: value for name, value in record.headers.items() if not name.startswith("Nats-")}
    return Encoded(record.subject, {**kept, "ce-id": identifier, MESSAGE_ID: new_id("again")}, record.data)


def publish(stack: WholeStack, *messages: Encoded) -> None:
    """Send these with the operator's rights, in this order."""

    async def send() -> None:
        root = bytes.fromhex((stack.directory / "root.key").read_text())
        connection = Connection(f"nats://127.0.0.1:{stack.port + 20}", ADMIN, nkey_seed(root, ADMIN))
        await connection.open(5)
        try:
            for message in messages:
                await Publisher(connection).publish(*message)
        finally:
            await connection.close()

    asyncio.run(send())


def is_caught_up(stack: WholeStack, stream: str, durable: str) -> bool:
    """Whether a durable has handled all that its stream holds."""

    async def look() -> bool:
        async with operator(stack.directory, None, None) as bus:
            [found] = [one for one in await bus.durables(stream) if one.name == durable]
            return found.pending == 0 and found.unacknowledged == 0

    return asyncio.run(look())


def gateway_pid(stack: WholeStack, instance_id: str) -> int:
    """The process of this instance's gateway, as its controller wrote it down."""
    return int(json.loads((stack.root_of(instance_id) / "controller.json").read_text())["gateway_pid"])


def gateway_port(stack: WholeStack, instance_id: str) -> int:
    """Where the gateway of this instance listens."""
    return int(json.loads((stack.root_of(instance_id) / "state" / "openclaw.json").read_text())["gateway"]["port"])
