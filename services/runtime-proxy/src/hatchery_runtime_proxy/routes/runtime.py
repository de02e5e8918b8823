"""The runtime API's application."""

from __future__ import annotations

from fastapi import FastAPI

from hatchery_runtime_proxy.routes import instance, responses, sessions
from hatchery_runtime_proxy.routes.access import RuntimeTools
from hatchery_runtime_proxy.routes.envelope import add_error_handlers


def runtime_api(tools: RuntimeTools) -> FastAPI:
    """`/v1/*` for Hatchery's own services."""
    app = FastAPI(title="Hatchery runtime API", openapi_url=None)
    app.state.tools = tools
    for router in (instance.router, sessions.router, responses.router):
        app.include_router(router)
    add_error_handlers(app)
    return app
