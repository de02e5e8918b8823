"""Fixtures of the bus tests: an empty, migrated server and a way to look into its streams."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import pytest
from hatchery_common.bus import Bus, ConsumerSettings
from hatchery_common.bus.replay import Operator
from hatchery_common.service import Service
from hatchery_common.testing.everything import QUICK, everything
from hatchery_common.testing.nats import NatsServer


@pytest.fixture
async def operator(clean_nats: NatsServer) -> AsyncGenerator[Operator]:
    async with Operator.open(clean_nats.url) as operator:
        yield operator


@pytest.fixture
async def opened(operator: Operator, clean_nats: NatsServer) -> AsyncGenerator[Callable[..., Awaitable[Bus]]]:
    """Migrates for a service and opens its bus, as often as wanted."""
    contexts: list[Any] = []

    async def open_bus(service: Service | None = None, *, settings: ConsumerSettings = QUICK) -> Bus:
        chosen = service or everything()
        await operator.migrate([chosen])
        context = Bus.open(clean_nats.url, chosen, settings=settings)
        contexts.append(context)
        return await context.__aenter__()

    yield open_bus
    for context in reversed(contexts):
        await context.__aexit__(None, None, None)


@pytest.fixture
async def bus(opened: Callable[..., Awaitable[Bus]]) -> Bus:
    return await opened()
