"""An application around the fakes, with settings and tokens that it accepts."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
import jwt
import structlog
from api_fakes import FakeCalls, FakeLogs, FakeRuntime
from api_store import MemoryStore
from hatchery_api.adapters.changes import ProcessChanges
from hatchery_api.adapters.tokens import WebsiteTokens
from hatchery_api.routes import Door, build_app
from hatchery_api.settings import ApiSettings
from hatchery_common.clock import FixedClock

SECRET = "w" * 64
NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
OA_KEY = "oa-internal-key-0123456789"
PLATFORM_KEY = "platform-key-0123456789"


@dataclass
class World:
    """Everything a test can touch."""

    door: Door
    store: MemoryStore
    calls: FakeCalls
    logs: FakeLogs
    app: Any
    client: httpx.AsyncClient

    def bearer(self, user: str = "ada", **changes: Any) -> dict[str, str]:
        return {"Authorization": f"Bearer {token(user, **changes)}"}


def token(user: str = "ada", *, secret: str = SECRET, algorithm: str = "HS256", drop: str = "", **changes: Any) -> str:
    now = int(datetime.now(UTC).timestamp())
    claims = {"sub": user, "iss": "hatchery", "aud": "hatchery", "exp": now + 600, "iat": now, **changes}
    claims.pop(drop, None)
    return jwt.encode(claims, None if algorithm == "none" else secret, algorithm=algorithm)


def settings(**changes: Any) -> ApiSettings:
    given = {
        "website_jwt_secret": SECRET,
        "internal_api_key": PLATFORM_KEY,
        "oa_internal_key": OA_KEY,
        "runtime_service_key": "ab" * 32,
        "public_url": "http://test",
    }
    return ApiSettings(**{**given, **changes})


def build_door(chosen: ApiSettings, store: Any, logs: FakeLogs, calls: FakeCalls) -> Door:
    secrets = [one for one in (chosen.website_jwt_secret, chosen.website_jwt_secret_previous) if one]
    return Door(
        settings=chosen,
        store=store,
        calls=calls,
        logs=logs,
        runtime=FakeRuntime(),
        tokens=WebsiteTokens(
            secrets, issuer=chosen.jwt_issuer, audience=chosen.jwt_audience, environment=chosen.jwt_environment
        ),
        changes=ProcessChanges(),
        clock=FixedClock(NOW),
        log=structlog.wrap_logger(structlog.ReturnLogger(), processors=[structlog.processors.JSONRenderer()]),
    )


@asynccontextmanager
async def opened(store: Any = None, **changes: Any) -> AsyncGenerator[World]:
    logs = FakeLogs()
    calls = FakeCalls(logs)
    store = store or MemoryStore()
    door = build_door(settings(**changes), store, logs, calls)
    app = build_app(door)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield World(door, store, calls, logs, app, client)
