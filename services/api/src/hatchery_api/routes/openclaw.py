"""/openclaw/* and /api/openclaw/*: the user's instance, sessions and credits."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from hatchery_common.contracts.billing import SUMMARY, SummaryRequest, SummaryResponse
from pydantic import BaseModel, Field

from hatchery_api import queries
from hatchery_api.domain.instances import DEFAULT_NAME, NAME_PATTERN
from hatchery_api.domain.operations import Kind
from hatchery_api.domain.secrecy import without_secrets
from hatchery_api.handlers.intents import Outcome
from hatchery_api.handlers.steps import step
from hatchery_api.handlers.threads import instance_id_of
from hatchery_api.routes.door import DoorOf
from hatchery_api.routes.envelope import FAILURES, Envelope
from hatchery_api.routes.identity import CurrentUser
from hatchery_api.routes.intents import DEFAULT, IdempotencyKey, Name, Plan, accept, wish_of
from hatchery_api.routes.verbs import VERBS, Verb, accepted, add_verb
from hatchery_api.routes.views import InstanceView, PlanView, instance_view, plan_view

router = APIRouter(tags=["openclaw"], responses=FAILURES)
Wished = Envelope[InstanceView | PlanView | None]
SessionKey = Annotated[str, Path(pattern=r"^[^\x00-\x1f\x7f]{1,200}$", description="The gateway's session key")]


class Index(BaseModel):
    """What this service is."""

    service: str = "hatchery"
    endpoints: list[str]
    documentation: str = "/docs"
    openapi: str = "/openapi.json"


class NewInstance(BaseModel):
    """An instance to provision; everything has a default."""

    name: str = Field(default=DEFAULT_NAME, pattern=NAME_PATTERN)
    size: str = Field(default="standard", pattern=r"^[a-z][a-z0-9-]{0,31}$")


class BillingSummary(SummaryResponse):
    """Balance, grant and burn of this period, and the latest lines; micro-USD are exact, `balance_usd` is for display."""

    balance_usd: float


def wished(kind: Kind, outcome: Outcome, *, plan: bool) -> Envelope[InstanceView | PlanView | None]:
    """The answer to a wish."""
    if plan:
        return Envelope(data=plan_view(kind, outcome))
    return Envelope(data=instance_view(outcome.sight, outcome.operation))


@router.get("", name="openclaw index", operation_id="getOpenclawIndex", summary="What this family offers")
async def index() -> Envelope[Index]:
    paths = ["instance", "instance/start", "instance/stop", "instance/restart", "instances", "chat", "sessions"]
    return Envelope(data=Index(endpoints=[f"/api/openclaw/{path}" for path in [*paths, "billing/summary"]]))


@router.get(
    "/instance", name="openclaw getInstance", operation_id="getInstance", summary="The user's instance, or null"
)
async def get_instance(user: CurrentUser, door: DoorOf, name: Name = DEFAULT) -> Envelope[InstanceView | None]:
    return Envelope(data=instance_view(await queries.instance(user.tenant, name, store=door.store)))


@router.get(
    "/instances", name="openclaw listInstances", operation_id="listInstances", summary="All instances of the user"
)
async def list_instances(user: CurrentUser, door: DoorOf) -> Envelope[list[InstanceView]]:
    views = [instance_view(sight) for sight in await queries.instances(user.tenant, store=door.store)]
    return Envelope(data=[view for view in views if view is not None])


@router.post(
    "/instance",
    name="openclaw createInstance",
    operation_id="createInstance",
    summary="Provision the instance, or return the one that is there with its running operation",
    status_code=202,
    responses=accepted(Wished),
)
async def create_instance(
    request: Request,
    response: Response,
    user: CurrentUser,
    door: DoorOf,
    body: NewInstance | None = None,
    plan: Plan = False,
    idempotency_key: IdempotencyKey = None,
) -> Envelope[InstanceView | PlanView | None]:
    new = body or NewInstance()
    said = new.model_dump(mode="json")
    wish = wish_of(request, user.tenant, new.name, Kind.PROVISION, idempotency_key, said, new.size)
    return wished(Kind.PROVISION, await accept(wish, response, door, plan=plan), plan=plan)


def _add(verb: Verb) -> None:
    """The verbs differ in nothing but their kind."""

    async def act(
        request: Request,
        response: Response,
        user: CurrentUser,
        door: DoorOf,
        name: Name = DEFAULT,
        plan: Plan = False,
        idempotency_key: IdempotencyKey = None,
    ) -> Envelope[InstanceView | PlanView | None]:
        wish = wish_of(request, user.tenant, name, verb.kind, idempotency_key, {})
        return wished(verb.kind, await accept(wish, response, door, plan=plan), plan=plan)

    place = {"path": f"/instance/{verb.kind.value}", "method": "POST"}
    if verb.kind is Kind.DELETE:
        place = {"path": "/instance", "method": "DELETE"}
    add_verb(router, verb, act, name=f"openclaw {verb.kind.value}Instance", answer=Wished, **place)


for _verb in VERBS:
    _add(_verb)


@router.get("/sessions", name="openclaw listSessions", operation_id="listSessions", summary="The gateway's sessions")
async def list_sessions(user: CurrentUser, door: DoorOf, name: Name = DEFAULT) -> Envelope[Any]:
    instance_id = await instance_id_of(user.tenant, name, store=door.store)
    with step("runtime"):
        return Envelope(data=without_secrets(await door.runtime.sessions(user.tenant, instance_id)))


@router.get(
    "/sessions/{session_key:path}/history",
    name="openclaw getSessionHistory",
    operation_id="getSessionHistory",
    summary="The latest messages of one session",
)
async def session_history(
    session_key: SessionKey,
    user: CurrentUser,
    door: DoorOf,
    name: Name = DEFAULT,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Envelope[Any]:
    instance_id = await instance_id_of(user.tenant, name, store=door.store)
    with step("runtime"):
        history = await door.runtime.history(user.tenant, instance_id, session_key, limit)
        return Envelope(data=without_secrets(history))


@router.get(
    "/billing/summary",
    name="openclaw getBillingSummary",
    operation_id="getBillingSummary",
    summary="Credits: balance, this period, and the latest lines",
)
async def billing_summary(
    user: CurrentUser, door: DoorOf, limit: Annotated[int, Query(ge=1, le=200)] = 20
) -> Envelope[BillingSummary]:
    with step("billing"):
        summary = await door.calls.call(SUMMARY, SummaryRequest(tenant=user.tenant, limit=limit))
    balance_usd = summary.balance_micro / 1_000_000
    return Envelope(data=BillingSummary(**summary.model_dump(), balance_usd=balance_usd))
