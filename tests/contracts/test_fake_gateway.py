"""The stand-in gateway passes the conformance suite."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest_asyncio
from gateway_conformance import LOOP, GatewayConformance, UnderTest
from gateway_process import GatewayProcess
from hatchery_common.testing.fake_gateway import ENTRY
from hatchery_common.testing.model_stub import ModelStub


@pytest_asyncio.fixture(scope="module", loop_scope=LOOP)
async def gateway(tmp_path_factory) -> AsyncGenerator[UnderTest]:
    root: Path = tmp_path_factory.mktemp("fake-gateway")
    async with ModelStub() as model:
        process = GatewayProcess([sys.executable, str(ENTRY)], root, model.base_url)
        began = time.monotonic()
        await process.start()
        try:
            await process.wait_ready(10)
            assert time.monotonic() - began < 3, "the stand-in must start at once"
            yield UnderTest(process, model)
        finally:
            await process.kill()


class TestFakeGateway(GatewayConformance):
    """All of the suite."""
