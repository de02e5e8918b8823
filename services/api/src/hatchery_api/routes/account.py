"""/api/me and the index of the whole api."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel

from hatchery_api.domain.identity import Via
from hatchery_api.routes.envelope import FAILURES, Envelope
from hatchery_api.routes.identity import CurrentUser

router = APIRouter(tags=["account"], responses=FAILURES)


class Me(BaseModel):
    """The caller as we know them."""

    user_id: str
    tenant: str
    access_enabled: bool
    via: Via
    created_at: int


class Home(BaseModel):
    """Where to go from here."""

    service: str = "hatchery"
    documentation: str = "/docs"
    openapi: str = "/openapi.json"
    families: list[str] = ["/api/openclaw", "/api/platform", "/api/operations", "/api/threads", "/api/me"]


@router.get("/api/me", name="account getMe", operation_id="getMe", summary="The caller")
async def me(caller: CurrentUser) -> Envelope[Me]:
    user = caller.user
    return Envelope(
        data=Me(
            user_id=user.user_id,
            tenant=user.tenant,
            access_enabled=user.access_enabled,
            via=caller.via,
            created_at=user.created_ms,
        )
    )


@router.get("/", name="account home", operation_id="getHome", summary="Where to go from here")
async def home() -> Envelope[Home]:
    return Envelope(data=Home())
