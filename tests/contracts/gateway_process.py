"""Starts a gateway as a controller does, for the conformance suite: the stand-in or the real one, by its command."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from asyncio.subprocess import Process
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from hatchery_common.secrets import machine_header_name, owner_identity, service_identity
from hatchery_common.testing.ports import free_port
from hatchery_runtime_proxy.ports import Machine

KEY = bytes(range(32))


class GatewayProcess:
    """One gateway in its own directory: configured, started, killed and started again."""

    def __init__(self, command: Sequence[str], root: Path, model_url: str, machine_id: str = "mch_conformance") -> None:
        self.command, self.root, self.model_url = list(command), root, model_url
        self.port = free_port()
        self.machine = Machine(machine_id, f"http://127.0.0.1:{self.port}")
        self.model_key = "conformance"
        self.process: Process | None = None

    @property
    def log(self) -> str:
        """What the process printed."""
        return (self.root / "logs" / "out.log").read_text()

    def configuration(self) -> dict[str, Any]:
        """A configuration of the shape that the controller writes."""
        return {
            "gateway": {
                "mode": "local",
                "port": self.port,
                "bind": "loopback",
                "trustedProxies": ["127.0.0.1"],
                "auth": self._auth(),
                "controlUi": {"sessionObserver": False},
                "http": {"endpoints": {"responses": {"enabled": True}}},
                "tools": {"allow": ["sessions_send"]},
            },
            "logging": {"file": str(self.root / "logs" / "gateway.log")},
            "update": {"checkOnStart": False},
            "models": {"mode": "replace", "providers": {"hatchery": self._provider()}},
            "agents": {
                "defaults": {
                    "model": {"primary": "hatchery/demo"},
                    "workspace": str(self.root / "workspace"),
                    "heartbeat": {"every": "0m"},
                    "utilityModel": "",
                }
            },
            "plugins": {"entries": {"memory-core": {"config": {"dreaming": {"enabled": False}}}}},
            "skills": {"workshop": {"autonomous": {"mode": "off"}}},
        }

    def _auth(self) -> dict[str, Any]:
        owner, service = owner_identity(self.machine.machine_id), service_identity(self.machine.machine_id)
        trusted_proxy = {
            "userHeader": machine_header_name(KEY, self.machine.machine_id),
            "requiredHeaders": ["x-forwarded-proto"],
            "allowUsers": [owner, service],
            "allowLoopback": True,
        }
        scopes = {owner: ["operator.admin"], service: ["operator.read"]}
        return {"mode": "trusted-proxy", "identityScopes": scopes, "trustedProxy": trusted_proxy}

    def _provider(self) -> dict[str, Any]:
        model = {"id": "demo", "name": "Demo", "reasoning": False, "input": ["text"], "contextWindow": 128000}
        cost = {"input": 0, "output": 0, "cacheRead": 0, "cacheWrite": 0}
        provider = {"baseUrl": self.model_url, "apiKey": "${HATCHERY_LLM_KEY}", "api": "openai-completions"}
        return {**provider, "models": [{**model, "cost": cost, "maxTokens": 8000}]}

    async def start(self, configuration: dict[str, Any] | None = None, *, beside: bool = False) -> None:
        """Starts the process without waiting for it; `beside` gives it a configuration file of its own.

        A running gateway watches its file: a second process that wrote there would restart the first.
        """
        for name in ("state", "workspace", "home", "tmp", "logs"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        path = self.root / "beside.json" if beside else self.root / "state" / "openclaw.json"
        path.write_text(json.dumps(configuration or self.configuration()))
        path.chmod(0o600)
        environment = {
            "PATH": f"{Path(self.command[0]).parent}:/usr/bin:/bin",
            "HOME": str(self.root / "home"),
            "TMPDIR": str(self.root / "tmp"),
            "OPENCLAW_STATE_DIR": str(self.root / "state"),
            "OPENCLAW_CONFIG_PATH": str(path),
            "HATCHERY_LLM_KEY": self.model_key,
            "OPENCLAW_NO_RESPAWN": "1",
            "OPENCLAW_DISABLE_BONJOUR": "1",
            "OPENCLAW_NO_AUTO_UPDATE": "1",
            "OPENCLAW_OFFLINE": "1",
        }
        with (self.root / "logs" / "out.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *self.command,
                "gateway",
                "run",
                env=environment,
                cwd=self.root,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def wait_ready(self, deadline_s: float = 120) -> None:
        """Until /ready answers 200; fails with the log when the process ends before."""
        assert self.process is not None
        async with asyncio.timeout(deadline_s), httpx.AsyncClient(trust_env=False) as client:
            while self.process.returncode is None:
                try:
                    if (await client.get(f"{self.machine.endpoint}/ready")).status_code == 200:
                        return
                except httpx.HTTPError:
                    pass
                await asyncio.sleep(0.05)
        raise AssertionError(f"the gateway ended with {self.process.returncode}:\n{self.log[-2000:]}")

    async def wait_exit(self, deadline_s: float = 60) -> int:
        """The exit status."""
        assert self.process is not None
        async with asyncio.timeout(deadline_s):
            return await self.process.wait()

    async def terminate(self) -> int:
        """SIGTERM and the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return await self.wait_exit()

    async def kill(self) -> None:
        """SIGKILL to the process group, as at the end of a stop's deadline."""
        if self.process is not None and self.process.returncode is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            await self.process.wait()
