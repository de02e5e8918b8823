"""/api/platform/*: the lifecycle for a website's backend, with the seeds' field names beside ours."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from hatchery_common.contracts.instances import InstanceStatus
from pydantic import BaseModel, Field, SecretStr

from hatchery_api import queries
from hatchery_api.domain.identity import USER_ID_PATTERN, app_name, sandbox_id
from hatchery_api.domain.instances import DEFAULT_NAME, NAME_PATTERN
from hatchery_api.domain.operations import Kind
from hatchery_api.handlers import access
from hatchery_api.handlers.steps import step
from hatchery_api.routes.door import Door, DoorOf
from hatchery_api.routes.envelope import FAILURES, Envelope
from hatchery_api.routes.identity import new_user, require_platform_key
from hatchery_api.routes.intents import DEFAULT, IdempotencyKey, Name, Plan, accept, wish_of
from hatchery_api.routes.verbs import VERBS, Verb, accepted, add_verb
from hatchery_api.routes.views import InstanceView, PlanView, instance_view, plan_view

router = APIRouter(
    prefix="/api/platform", tags=["platform"], responses=FAILURES, dependencies=[Depends(require_platform_key)]
)
UserId = Annotated[
    str,
    Query(alias="userId", pattern=USER_ID_PATTERN, description="The user's id, or its base64 (the seeds' instance id)"),
]
_SEED_WORD = {InstanceStatus.READY: "running", InstanceStatus.DEGRADED: "running"}
_UNUSED_KEY = "kilocodeApiKey is not stored: machines get their model access from the model gateway"


class PlatformBody(BaseModel):
    """Whose instance is meant."""

    userId: str = Field(pattern=USER_ID_PATTERN, description="the user's id")  # noqa: N815 - the seeds' name
    name: str = Field(default=DEFAULT_NAME, pattern=NAME_PATTERN)


class ProvisionBody(PlatformBody):
    """An instance to provision for a user."""

    size: str = Field(default="standard", pattern=r"^[a-z][a-z0-9-]{0,31}$")
    kilocodeApiKey: SecretStr | None = Field(default=None, max_length=4096)  # noqa: N815


class PlatformStatus(BaseModel):
    """An instance under the seeds' names; `status` is their word (running), `instance.status` ours (ready)."""

    userId: str  # noqa: N815
    sandboxId: str  # noqa: N815
    status: str | None
    flyAppName: str  # noqa: N815
    flyMachineId: str | None = None  # noqa: N815
    instance_id: str | None = None
    operation_id: str | None = None
    instance: InstanceView | None = None
    warnings: list[str] = []


class GatewayToken(BaseModel):
    """Why there is no gateway token, and where the instance opens."""

    gatewayToken: None = None  # noqa: N815
    reason: str = "trusted_proxy"
    message: str
    open_url: str | None = None


class RevokeBody(BaseModel):
    """Whose tokens end, and the pepper that new ones carry."""

    userId: str = Field(pattern=USER_ID_PATTERN, description="the user's id")  # noqa: N815 - the seeds' name
    pepper: SecretStr = Field(
        min_length=8, max_length=200, description="the `pepper` claim of tokens that count from now on"
    )


class Revoked(BaseModel):
    """The user whose earlier tokens count no more."""

    userId: str  # noqa: N815
    revoked: bool = True


Answer = Envelope[PlatformStatus | PlanView]


def _status(door: Door, user_id: str, view: InstanceView | None, warnings: list[str] | None = None) -> PlatformStatus:
    return PlatformStatus(
        userId=user_id,
        sandboxId=sandbox_id(user_id),
        status=_SEED_WORD.get(view.status, view.status.value) if view else None,
        flyAppName=app_name(door.settings.app_prefix, user_id),
        flyMachineId=view.machine_id if view else None,
        instance_id=view.instance_id if view else None,
        operation_id=view.operation_id if view else None,
        instance=view,
        warnings=warnings or [],
    )


@router.post(
    "/provision",
    name="platform provision",
    operation_id="platformProvision",
    summary="Provision the user's instance",
    status_code=202,
    responses=accepted(Answer),
)
async def provision(
    request: Request,
    response: Response,
    door: DoorOf,
    body: ProvisionBody,
    plan: Plan = False,
    idempotency_key: IdempotencyKey = None,
) -> Envelope[PlatformStatus | PlanView]:
    with step("get_instance"):
        user = await new_user(door, body.userId, plan=plan)
    said = body.model_dump(mode="json", exclude={"kilocodeApiKey"})
    wish = wish_of(request, user.tenant, body.name, Kind.PROVISION, idempotency_key, said, body.size)
    outcome = await accept(wish, response, door, plan=plan)
    if plan:
        return Envelope(data=plan_view(Kind.PROVISION, outcome))
    warnings = [_UNUSED_KEY] if body.kilocodeApiKey is not None else []
    return Envelope(data=_status(door, user.user_id, instance_view(outcome.sight, outcome.operation), warnings))


def _add(verb: Verb) -> None:
    """The verbs differ in nothing but their kind; none makes a user."""

    async def act(
        request: Request,
        response: Response,
        door: DoorOf,
        body: PlatformBody,
        plan: Plan = False,
        idempotency_key: IdempotencyKey = None,
    ) -> Envelope[PlatformStatus | PlanView]:
        with step("get_instance"):
            user = await access.known_user(body.userId, store=door.store)
        wish = wish_of(request, user.tenant, body.name, verb.kind, idempotency_key, body.model_dump(mode="json"))
        outcome = await accept(wish, response, door, plan=plan)
        if plan:
            return Envelope(data=plan_view(verb.kind, outcome))
        return Envelope(data=_status(door, user.user_id, instance_view(outcome.sight, outcome.operation)))

    add_verb(router, verb, act, path=f"/{verb.platform}", name=f"platform {verb.platform}", answer=Answer)


for _verb in VERBS:
    _add(_verb)


@router.post(
    "/revoke",
    name="platform revoke",
    operation_id="platformRevoke",
    summary="Revoke the user's website tokens: only those with the new pepper count",
)
async def revoke(door: DoorOf, body: RevokeBody) -> Envelope[Revoked]:
    user = await access.revoke(body.userId, body.pepper.get_secret_value(), store=door.store)
    return Envelope(data=Revoked(userId=user.user_id))


@router.get("/status", name="platform status", operation_id="platformStatus", summary="The user's instance")
async def status(user_id: UserId, door: DoorOf, name: Name = DEFAULT) -> Envelope[PlatformStatus]:
    user = await access.look_up(user_id, store=door.store)
    if user is None:
        return Envelope(data=_status(door, user_id, None))
    sight = await queries.instance(user.tenant, name, store=door.store)
    return Envelope(data=_status(door, user.user_id, instance_view(sight)))


@router.get(
    "/gateway-token",
    name="platform gateway-token",
    operation_id="platformGatewayToken",
    summary="Says why there is no gateway token, and where the instance opens",
)
async def gateway_token(user_id: UserId, door: DoorOf, name: Name = DEFAULT) -> Envelope[GatewayToken]:
    user = await access.look_up(user_id, store=door.store)
    sight = await queries.instance(user.tenant, name, store=door.store) if user else None
    template = door.settings.ingress_url
    claim = sight.claim if sight else None
    return Envelope(
        data=GatewayToken(
            message="gateways run in trusted-proxy mode: the proxy proves who the owner is, so no token exists to hand out",
            open_url=template.replace("{instance}", claim.instance_id) if template and claim else None,
        )
    )
