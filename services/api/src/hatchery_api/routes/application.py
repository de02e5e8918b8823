"""The FastAPI application around one door."""

from __future__ import annotations

from fastapi import Depends, FastAPI
from fastapi.responses import HTMLResponse
from starlette.middleware.cors import CORSMiddleware

from hatchery_api.routes import account, chat, openclaw, operations, platform, threads
from hatchery_api.routes.door import Door
from hatchery_api.routes.envelope import install
from hatchery_api.routes.limits import BodyLimit, require_size
from hatchery_api.routes.openapi import describe, page

_ALLOWED_HEADERS = [
    "authorization",
    "content-type",
    "idempotency-key",
    "last-event-id",
    "x-oa-internal-key",
    "x-oa-user-id",
    "x-openagents-service-token",
]
_EXPOSED_HEADERS = ["location", "retry-after", "idempotency-replayed", "x-hatchery-thread-id", "x-hatchery-run-id"]


def build_app(door: Door) -> FastAPI:
    """Every family of the website's contract; /openclaw/* is the same as /api/openclaw/*."""
    limited = [Depends(require_size)]
    app = FastAPI(
        title="Hatchery", version="1", docs_url=None, redoc_url=None, redirect_slashes=False, dependencies=limited
    )
    app.state.door = door
    install(app)
    for router in (openclaw.router, chat.router):
        app.include_router(router, prefix="/api/openclaw")
        app.include_router(router, prefix="/openclaw", include_in_schema=False)
    for router in (platform.router, operations.router, threads.router, account.router):
        app.include_router(router)
    app.add_middleware(BodyLimit, max_bytes=door.settings.max_body_bytes)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=list(door.settings.origins),
        allow_credentials=True,
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=_ALLOWED_HEADERS,
        expose_headers=_EXPOSED_HEADERS,
        max_age=600,
    )
    describe(app)

    @app.get("/docs", include_in_schema=False, name="docs")
    async def docs() -> HTMLResponse:
        return HTMLResponse(page(app.openapi()))

    return app
