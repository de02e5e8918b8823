"""What /readyz says when a check itself goes wrong."""

from __future__ import annotations

import httpx
from hatchery_common.health import Health
from hatchery_common.service import Check
from prometheus_client import CollectorRegistry


async def test_a_check_that_fails_is_a_named_problem_without_its_secrets() -> None:
    async def well() -> str | None:
        return None

    async def broken() -> str | None:
        raise RuntimeError("postgresql://hatchery:hunter2@db/x: password authentication failed")

    health = Health("agent", CollectorRegistry())
    health.set("running")
    health.checks = (Check("postgres", broken), Check("nats", well))
    transport = httpx.ASGITransport(app=health.application())
    async with httpx.AsyncClient(transport=transport, base_url="http://health") as client:
        answer = await client.get("/readyz")
    assert answer.status_code == 503
    (problem,) = answer.json()["problems"]
    assert problem.startswith("postgres: RuntimeError: ")
    assert "password authentication failed" in problem
    assert "hunter2" not in problem
