"""/healthz, /readyz and /metrics of one service, on a listener of its own that outlives the service's restarts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hatchery_common.log import redact_text
from hatchery_common.service import Check

_CHECK_S = 6.0  # over the 5 s that Postgres gets


class Health:
    """What is known of one service: its phase, its checks, and why it is not ready."""

    def __init__(self, service: str, registry: CollectorRegistry) -> None:
        self.service = service
        self.registry = registry
        self.phase = "starting"
        self.reason: str | None = "starting"
        self.restarts = 0
        self.checks: Sequence[Check] = ()
        self.on_change: Callable[[Health], None] | None = None
        self._since = time.monotonic()
        self._of_life = CollectorRegistry()
        self._ready = Gauge("hatchery_service_ready", "1 when the service is ready", registry=registry)
        self._restarts = Gauge("hatchery_service_restarts", "restarts by the supervisor", registry=registry)

    def renew(self) -> CollectorRegistry:
        """A registry for one life of the service: its parts register the same names again in the next one."""
        self._of_life = CollectorRegistry()
        return self._of_life

    @property
    def ran_for_s(self) -> float:
        """How long it has been running; 0 in any other phase."""
        return time.monotonic() - self._since if self.phase in ("running", "draining") else 0.0

    def set(self, phase: str, reason: str | None = None) -> None:
        """Move to a phase (starting, waiting, running, draining, failed), with the reason when it is not running."""
        self.phase, self.reason, self._since = phase, reason, time.monotonic()
        self._ready.set(1 if phase == "running" else 0)
        self._restarts.set(self.restarts)
        if self.on_change is not None:
            self.on_change(self)

    async def problems(self) -> list[str]:
        """One sentence for each thing that is wrong; empty when ready."""
        found = (
            [] if self.phase == "running" else [f"{self.service} is {self.phase}: {self.reason or 'no reason given'}"]
        )
        for check in self.checks:
            problem = await _answer(check)
            if problem is not None:
                found.append(f"{check.name}: {problem}")
        return found

    def application(self) -> Starlette:
        """The ASGI application of the health listener."""
        return Starlette(
            routes=[
                Route("/healthz", self._healthz),
                Route("/readyz", self._readyz),
                Route("/metrics", self._metrics),
            ]
        )

    async def _healthz(self, _request: Request) -> Response:
        alive = self.phase != "failed"
        return JSONResponse({"ok": alive, "service": self.service, "phase": self.phase}, 200 if alive else 503)

    async def _readyz(self, _request: Request) -> Response:
        problems = await self.problems()
        body = {
            "ok": not problems,
            "service": self.service,
            "phase": self.phase,
            "for_s": round(time.monotonic() - self._since, 1),
            "restarts": self.restarts,
            "problems": problems,
        }
        return JSONResponse(body, 503 if problems else 200)

    async def _metrics(self, _request: Request) -> Response:
        body = generate_latest(self.registry) + generate_latest(self._of_life)
        return Response(body, media_type=CONTENT_TYPE_LATEST)


async def _answer(check: Check) -> str | None:
    """What the check says; a check that fails or hangs is a problem with a name, not the end of the answer."""
    try:
        async with asyncio.timeout(_CHECK_S):
            return await check.run()
    except TimeoutError:
        return f"no answer within {_CHECK_S:g} s"
    except Exception as error:  # noqa: BLE001 - whatever is wrong belongs into the answer
        return redact_text(f"{type(error).__name__}: {error}")
