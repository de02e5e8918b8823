"""Intents on instances: claim, operation, generation, idempotency and outbox in one transaction."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hatchery_common.clock import Clock, to_ms
from hatchery_common.contracts.instances import InstanceCommand, ProvisionInstance
from hatchery_common.errors import Conflict
from hatchery_common.failpoints import reach
from hatchery_common.ids import new_id

from hatchery_api.domain.errors import IdempotencyMismatch
from hatchery_api.domain.instances import Claim, Decision, Sight, decide
from hatchery_api.domain.operations import COMMAND, DEADLINE_MS, Kind, Operation, OperationState
from hatchery_api.handlers.steps import step
from hatchery_api.ports import Reads, Remembered, RequestKey, Store, Work

_CLAIM_TRIES = 3  # each retry means that the claim was released between two statements


@dataclass(frozen=True, slots=True)
class Wish:
    """What one request asks for."""

    tenant: str
    name: str
    kind: Kind
    size: str = "standard"
    key: RequestKey | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a wish: how the instance looks now, and the operation that works on it, if one does."""

    sight: Sight
    operation: Operation | None
    decision: Decision
    replayed: bool = False


async def plan(wish: Wish, *, store: Store) -> Outcome:
    """What `request` would do now, without doing it; raises as it would."""
    async with store.read() as reads:
        sight = await _sight_of(reads, await reads.claims.find(wish.tenant, wish.name))
    decision = decide(wish.kind, wish.name, sight)
    return Outcome(sight, sight.running if decision is Decision.JOIN else None, decision)


async def request(wish: Wish, *, store: Store, clock: Clock) -> Outcome:
    """Accept the wish: exactly one operation, however often and from how many places it is repeated."""
    with step("upsert (provisioning)" if wish.kind is Kind.PROVISION else None):
        async with store.begin() as work:
            outcome = await _request(wish, work, to_ms(clock.now()))
    reach("api.after_intent_commit")
    return outcome


async def _request(wish: Wish, work: Work, now_ms: int) -> Outcome:
    remembered = await work.keys.take(wish.key, now_ms) if wish.key else None
    if remembered is not None and wish.key is not None:
        return await _replay(wish.key, remembered, work)
    with step("get_instance" if wish.kind is Kind.PROVISION else None):
        sight = await _locked(wish, work, now_ms)
        decision = decide(wish.kind, wish.name, sight)
    outcome = Outcome(sight, sight.running if decision is Decision.JOIN else None, decision)
    if decision is Decision.BEGIN:
        outcome = await _begin(wish, sight, work, now_ms)
    if wish.key is not None:
        await work.keys.settle(wish.key, _refs(outcome))
    return outcome


async def _locked(wish: Wish, work: Work, now_ms: int) -> Sight:
    """The instance with its claim locked; a provision makes the claim, which `decide` then sees without any operation."""
    for _ in range(_CLAIM_TRIES):
        claim = await work.claims.lock(wish.tenant, wish.name)
        if claim is not None or wish.kind is not Kind.PROVISION:
            return await _sight_of(work, claim)
        claim = Claim(wish.tenant, wish.name, new_id("ins"), generation=0, deleting=False, created_ms=now_ms)
        if await work.claims.add(claim):
            return Sight(claim, None, None)
    raise Conflict(f"instance {wish.name} is being claimed and released at this moment", hint="try again")


async def _sight_of(reads: Reads, claim: Claim | None) -> Sight:
    if claim is None:
        return Sight(None, None, None)
    state = await reads.instances.find(claim.instance_id)
    return Sight(claim, state, await reads.operations.newest(claim.instance_id))


async def _begin(wish: Wish, sight: Sight, work: Work, now_ms: int) -> Outcome:
    assert sight.claim is not None  # decide begins nothing without a claim but a provision, which has made it
    claim = replace(sight.claim, generation=sight.claim.generation + 1, deleting=wish.kind is Kind.DELETE)
    operation = Operation(
        operation_id=new_id("op"),
        tenant=wish.tenant,
        instance_id=claim.instance_id,
        name=wish.name,
        kind=wish.kind,
        generation=claim.generation,
        state=OperationState.ACCEPTED,
        created_ms=now_ms,
        deadline_ms=now_ms + DEADLINE_MS[wish.kind],
        updated_ms=now_ms,
    )
    await work.claims.save(claim)
    await work.operations.add(operation)
    await work.operations.note(operation.operation_id, "accepted", now_ms, {"kind": wish.kind.value})
    await work.emit(_command(wish, operation), id=operation.operation_id)
    return Outcome(Sight(claim, sight.state, operation), operation, Decision.BEGIN)


def _command(wish: Wish, operation: Operation) -> InstanceCommand:
    common = {
        "tenant": wish.tenant,
        "instance_id": operation.instance_id,
        "operation_id": operation.operation_id,
        "generation": operation.generation,
    }
    if wish.kind is Kind.PROVISION:
        return ProvisionInstance.model_validate({**common, "name": wish.name, "size": wish.size})
    return COMMAND[wish.kind].model_validate(common)


def check_key(key: RequestKey, remembered: Remembered) -> dict[str, str | None]:
    """The ids that the key stands for; raises IdempotencyMismatch for another body, Conflict for an unsettled one."""
    if remembered.body_hash != key.body_hash:
        raise IdempotencyMismatch(
            "this Idempotency-Key was used with another request body", hint="use a new key for a new request"
        )
    if remembered.refs is None:
        raise Conflict("a request with this Idempotency-Key is under way", hint="repeat it in a moment")
    return remembered.refs


def _refs(outcome: Outcome) -> dict[str, str | None]:
    claim = outcome.sight.claim
    return {
        "instance_id": claim.instance_id if claim else None,
        "name": claim.name if claim else None,
        "operation_id": outcome.operation.operation_id if outcome.operation else None,
    }


async def _replay(key: RequestKey, remembered: Remembered, reads: Reads) -> Outcome:
    """The first request's instance and operation as they are now."""
    refs = check_key(key, remembered)
    operation_id, instance_id = refs.get("operation_id"), refs.get("instance_id") or ""
    operation = await reads.operations.find(key.tenant, operation_id) if operation_id else None
    claim = await reads.claims.find(key.tenant, refs.get("name") or "")
    if claim is not None and claim.instance_id != instance_id:
        claim = None
    newest = await reads.operations.newest(instance_id)
    sight = Sight(claim, await reads.instances.find(instance_id), newest)
    return Outcome(sight, operation, Decision.JOIN if operation else Decision.NOTHING, replayed=True)
