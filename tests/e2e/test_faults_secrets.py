"""After a whole life, faults included, no secret is anywhere but in its place: disk, streams, answers, logs, processes."""

from __future__ import annotations

import json
import mmap
import os
import stat
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest
from faults import Faults, ended, faulty_stack, records
from hatchery_cli.embedded.machines import controllers, gateways
from hatchery_cli.embedded.stack import superuser_password
from hatchery_cli.rendering import derived_key, nkey_seed, role_password
from hatchery_common.ids import tenant_key
from hatchery_common.secrets import controller_token, derive, machine_header_name, runtime_service_token
from visitor import Visitor
from whole_stack import SERVICES, WholeStack, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
USER, PROMPT = "ann.secretive@example.com", "a prompt that is nobody's business"
HOLDERS = {
    "machine-identity": {"provisioner", "runtime-proxy"},
    "controller": {"provisioner", "runtime-proxy"},
    "runtime-service": {"api", "agent", "runtime-proxy"},
    "model-token": {"provisioner"},
    "website-jwt": {"api"},
    "internal-api-key": {"api"},
    "oa-internal-key": {"api"},
}


@dataclass
class Life:
    """What was secret in the life of one user, and everything that was said to them."""

    stack: WholeStack
    secrets: dict[str, str] = field(default_factory=dict[str, str])
    said: list[str] = field(default_factory=list[str])

    def remember_services(self) -> None:
        root = bytes.fromhex((self.stack.directory / "root.key").read_text())
        self.secrets |= {"root key": root.hex(), "superuser": superuser_password(root)}
        self.secrets |= {f"key {name}": derived_key(root, name).hex() for name in HOLDERS}
        self.secrets |= {f"nkey {name}": nkey_seed(root, name) for name in (*SERVICES, "bus-admin")}
        roles = ("api", "provisioner", "billing", "agent")
        self.secrets |= {f"role {name}": role_password(root, name) for name in roles}
        tenant = tenant_key(USER)
        self.secrets["service token"] = runtime_service_token(derive(root, "runtime-service"), tenant)
        self.secrets["website token"] = self.stack.token(USER)

    def remember_machine(self, site: Visitor) -> None:
        """The secrets of the machine as it is now; each generation has its own."""
        shown = site.instance()
        machine, root = shown["machine_id"], self.stack.root_of(shown["instance_id"])
        record = json.loads((root / "controller.json").read_text())
        identity, service = (bytes.fromhex(self.stack.key(name)) for name in ("machine-identity", "controller"))
        [model] = [one for one in psutil.Process(record["gateway_pid"]).environ().values() if one.startswith("eyJ")]
        header = machine_header_name(identity, machine)
        assert header in (root / "state" / "openclaw.json").read_text()
        found = {"header": header, "controller token": controller_token(service, machine), "model token": model}
        self.secrets |= {f"{name} of {machine}": value for name, value in found.items()}

    def leaks(self, text: str | bytes) -> set[str]:
        """Names of the secrets in it, whatever the case of their letters."""
        data = text.encode() if isinstance(text, str) else text
        return {name for name, value in self.secrets.items() if value.encode() in data}


def listening(life: Life, site: Visitor) -> Visitor:
    """Keeps every answer with its headers."""

    def hear(response: httpx.Response) -> None:
        life.said.append(str(response.headers))
        if "event-stream" not in response.headers.get("content-type", ""):
            life.said.append(response.read().decode())

    site.client.event_hooks = {"response": [hear]}
    return site


@pytest.fixture(scope="module")
def lived() -> Generator[Life]:
    """One user's instance in health and in failure; it still runs."""
    with faulty_stack("five") as (stack, faults):
        stack.up()
        life = Life(stack)
        life.remember_services()
        live(life, faults)
        yield life


def live(life: Life, faults: Faults) -> None:
    stack = life.stack
    site = listening(life, stack.caller(Authorization=f"Bearer {life.secrets['website token']}"))
    faults.plan(tell="1")  # a gateway that prints all that it was given
    site.wish("provision")
    life.remember_machine(site)
    thread = site.thread()["thread_id"]
    life.said.append(str(site.say(thread, PROMPT).events))
    site.wish("restart")
    life.remember_machine(site)
    faults.plan(tell="1", FAKE_GATEWAY_EXIT="78")
    site.wish("stop")
    operation = site.post("/api/openclaw/instance/start")["operation"]["operation_id"]
    life.said.append(str(list(site.follow(f"/api/operations/{operation}/events"))))
    assert ended(site, operation) == ("failed", "config_rejected")
    shown = site.instance()
    assert "[redacted]" in shown["message"], "the gateway told nothing, so this shows nothing"
    faults.plan(tell="1")
    site.wish("start")
    site.wish("provision", name="spare")
    site.wish("delete", name="spare")
    for path in ("/api/me", "/api/openclaw/sessions", "/api/openclaw/billing/summary"):
        site.get(path)
    runtime = listening(life, stack.runtime(USER))
    runtime.get("/v1/status")
    for broken in ({"x_oa_tenant_key": "t0"}, {"x_openagents_service_token": "0" * 64}):
        listening(life, stack.runtime(USER, **broken)).request("GET", "/v1/status")
    life.remember_machine(site)
    eventually(lambda: site.instance()["status"] == "ready")


def test_no_answer_holds_a_secret(lived: Life) -> None:
    assert len(lived.said) > 50
    for text in lived.said:
        assert lived.leaks(text) == set(), text[:2000]


def test_no_command_of_ours_tells_a_secret(lived: Life) -> None:
    [instance] = lived.stack.visitor(USER).get("/api/openclaw/instances")
    for words in (
        ("status",),
        ("status", "--json"),
        ("events", "--instance", instance["instance_id"], "--json"),
        ("stream", "tail", "EVT", "-n", "10000", "--json"),
        ("doctor", "--json"),
    ):
        done = lived.stack(*words)
        assert done.stdout
        assert lived.leaks(done.stdout + done.stderr) == set(), words


def test_no_message_holds_a_secret(lived: Life) -> None:
    for stream in ("CMD", "EVT", "THREADS", "DLQ", "KV_routes"):
        found = records(lived.stack, stream)
        assert found or stream == "DLQ"
        for record in found:
            text = record.subject.encode() + json.dumps(record.headers).encode() + record.data
            assert lived.leaks(text) == set(), (stream, record.sequence)
            if stream in ("CMD", "EVT"):
                assert USER.encode() not in text
                assert PROMPT.encode() not in text


def own(service: str) -> set[str]:
    """The secrets that a service is given."""
    keys = {f"key {name}" for name, holders in HOLDERS.items() if service in holders}
    return {f"nkey {service}", f"role {service}", *keys}


def allowed(life: Life, path: Path) -> Callable[[str], bool]:
    """Which secrets may lie in this file."""
    place = path.relative_to(life.stack.directory)
    if place == Path("root.key"):
        return lambda name: name == "root key"
    if place.parent == Path("secrets"):
        return own(path.stem).__contains__
    if place.parts[0] == "machines" and place.parts[2:] == ("state", "openclaw.json"):
        machine = json.loads((life.stack.machines / place.parts[1] / "machine.json").read_text())["machine_id"]
        return lambda name: name == f"header of {machine}"
    return lambda _: False


def test_no_file_holds_a_secret_but_its_own(lived: Life) -> None:
    seen: set[str] = set()
    for path in sorted(lived.stack.directory.rglob("*")):
        if path.is_symlink() or not path.is_file() or path.stat().st_size == 0:
            continue
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            found = {name for name, value in lived.secrets.items() if data.find(value.encode()) >= 0}
        may = allowed(lived, path)
        assert [name for name in found if not may(name)] == [], path
        seen |= found
        if found:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert {"root key", "nkey api", "role billing", "key model-token"} <= seen, "the search finds what is there"
    assert stat.S_IMODE((lived.stack.directory / "secrets").stat().st_mode) == 0o700
    assert stat.S_IMODE((lived.stack.directory / "logs").stat().st_mode) == 0o700


def test_no_log_names_the_user_or_what_they_said(lived: Life) -> None:
    for path in (lived.stack.directory / "logs").glob("*.log"):
        text = path.read_text(errors="replace")
        assert PROMPT not in text, path
        assert USER not in text, path


def test_no_process_shows_a_secret(lived: Life) -> None:
    stack = lived.stack
    up = psutil.Process(stack.state["pid"])
    minds, bodies = controllers(stack.machines), gateways(stack.machines)
    assert minds
    assert bodies
    [machine] = [one["machine_id"] for one in stack.visitor(USER).get("/api/openclaw/instances")]
    for process in (up, *up.children(recursive=True), *map(psutil.Process, (*minds, *bodies))):
        try:
            words, variables = process.cmdline(), process.environ()
        except psutil.NoSuchProcess:
            continue  # a connection of Postgres that has ended
        assert lived.leaks(" ".join(words)) == set(), process
        held = lived.leaks(json.dumps(variables))
        assert held <= ({f"model token of {machine}"} if process.pid in bodies else set()), process


@pytest.mark.skipif(os.getuid() != 0, reason="only root may read the memory of other processes")
def test_a_service_keeps_only_its_own_keys_in_mind(lived: Life) -> None:
    ours = {name for name in lived.secrets if name.partition(" ")[0] in ("root", "superuser", "key", "nkey", "role")}
    for service in SERVICES:
        held = lived.leaks(memory_of(lived.stack.state["parts"][service]["pid"])) & ours
        assert f"nkey {service}" in held, "the search finds what is there"
        assert held <= own(service), service


def memory_of(pid: int) -> bytes:
    """What a process has written to its memory."""
    found: list[bytes] = []
    with Path(f"/proc/{pid}/maps").open() as maps, Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in maps:
            span, rights, *_ = line.split()
            if not rights.startswith("rw"):
                continue
            first, last = (int(address, 16) for address in span.split("-"))
            try:
                memory.seek(first)
                found.append(memory.read(last - first))
            except OSError:
                continue  # a page of the kernel's
    return b"\0".join(found)
