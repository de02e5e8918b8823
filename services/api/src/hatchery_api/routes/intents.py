"""How every route that wishes something of an instance answers: plan, 202 with the operation, or 200 as it is."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any

from fastapi import Header, Query, Request, Response

from hatchery_api.domain.instances import DEFAULT_NAME, NAME_PATTERN, Decision
from hatchery_api.domain.operations import Kind
from hatchery_api.handlers import intents
from hatchery_api.handlers.intents import Outcome, Wish
from hatchery_api.ports import RequestKey
from hatchery_api.routes.door import Door
from hatchery_api.routes.envelope import route_name

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=r"^[\x21-\x7e]{1,200}$",
        description="Repeats with the same key and body have one effect (kept 30 days); another body is refused.",
    ),
]
Plan = Annotated[bool, Query(description="Show what would happen; do nothing.")]
Name = Annotated[str, Query(pattern=NAME_PATTERN, description="The instance's name.")]
DEFAULT: str = DEFAULT_NAME


def request_key(request: Request, tenant: str, key: str | None, body: Any) -> RequestKey | None:
    """The key where it counts, bound to everything that the request says."""
    if key is None:
        return None
    said = {"path": sorted(request.path_params.items()), "body": body}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode("utf-8", "replace")).hexdigest()
    return RequestKey(tenant, route_name(request), key, digest)


async def accept(wish: Wish, response: Response, door: Door, *, plan: bool) -> Outcome:
    """Do it, or only plan it; sets status and headers of the answer."""
    if plan:
        response.status_code = 200
        return await intents.plan(wish, store=door.store)
    outcome = await intents.request(wish, store=door.store, clock=door.clock)
    response.status_code = 202 if outcome.operation else 200
    if outcome.operation is not None:
        door.log.info(
            "api.intent.accepted",
            kind=wish.kind.value,
            tenant=wish.tenant,
            instance_id=outcome.operation.instance_id,
            operation_id=outcome.operation.operation_id,
            joined=outcome.decision is not Decision.BEGIN,
        )
        response.headers["Location"] = f"/api/operations/{outcome.operation.operation_id}"
        response.headers["Retry-After"] = "1"
    if outcome.replayed:
        response.headers["Idempotency-Replayed"] = "true"
    return outcome


def wish_of(
    request: Request, tenant: str, name: str, kind: Kind, key: str | None, body: Any, size: str = "standard"
) -> Wish:
    """The wish of this request."""
    return Wish(tenant, name, kind, size, request_key(request, tenant, key, {"name": name, "kind": kind.value, **body}))
