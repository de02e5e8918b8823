"""What leaves the api: explicit fields only, so nothing secret can slip through."""

from __future__ import annotations

from typing import Literal

from hatchery_common.contracts.instances import Condition, DesiredState, InstanceStatus
from pydantic import BaseModel, Field

from hatchery_api.domain.instances import Sight, shown
from hatchery_api.domain.operations import Kind, Operation, OperationState
from hatchery_api.handlers.intents import Outcome
from hatchery_api.ports import Run


class OperationView(BaseModel):
    """One accepted intent and where it stands; `error` is the prefixed line when it failed."""

    operation_id: str
    kind: Kind
    instance_id: str
    name: str
    generation: int
    status: OperationState
    overdue: bool = Field(description="past its deadline; it may still end")
    created_at: int
    deadline: int
    updated_at: int
    ended_at: int | None = None
    reason: str | None = None
    message: str | None = None
    error: str | None = None
    url: str
    events_url: str


class InstanceView(BaseModel):
    """An instance as its owner sees it; times are milliseconds since 1970 UTC."""

    instance_id: str
    name: str
    status: InstanceStatus
    desired: DesiredState
    since: int
    deadline: int | None = None
    reason: str | None = None
    message: str | None = None
    waiting_for: str | None = None
    operation_id: str | None = None
    operation: OperationView | None = None
    conditions: list[Condition] = []
    can: list[str] = []
    generation: int
    version: int
    driver: str
    machine_id: str | None = None
    gateway_version: str | None = None
    runtime_name: str
    created_at: int
    updated_at: int
    last_ready_at: int | None = None


class PlanView(BaseModel):
    """What a request would do; nothing was done."""

    plan: Literal[True] = True
    would: Literal["begin", "join", "nothing"]
    commands: list[str]
    costs: list[str]
    instance: InstanceView | None = None
    operation: OperationView | None = None


class RunView(BaseModel):
    """One answer to one message, as far as it has come."""

    run_id: str
    thread_id: str
    instance_id: str
    status: str
    attempt: int
    code: str | None = None
    created_at: int
    updated_at: int


_COSTS = {
    Kind.PROVISION: ["machine seconds while it runs"],
    Kind.START: ["machine seconds while it runs"],
    Kind.STOP: [],
    Kind.RESTART: ["machine seconds while it runs"],
    Kind.DELETE: ["all data of the instance is removed"],
}


def operation_view(operation: Operation) -> OperationView:
    """The operation for its owner."""
    return OperationView(
        operation_id=operation.operation_id,
        kind=operation.kind,
        instance_id=operation.instance_id,
        name=operation.name,
        generation=operation.generation,
        status=operation.state,
        overdue=operation.is_overdue,
        created_at=operation.created_ms,
        deadline=operation.deadline_ms,
        updated_at=operation.updated_ms,
        ended_at=operation.ended_ms,
        reason=operation.reason,
        message=operation.message,
        error=operation.error,
        url=f"/api/operations/{operation.operation_id}",
        events_url=f"/api/operations/{operation.operation_id}/events",
    )


def instance_view(sight: Sight, operation: Operation | None = None) -> InstanceView | None:
    """The instance with the operation that works on it; None when there is none."""
    state = shown(sight)
    if state is None:
        return None
    operation = operation or sight.running
    return InstanceView(
        instance_id=state.instance_id,
        name=state.name,
        status=state.status,
        desired=state.desired,
        since=state.since_ms,
        deadline=state.deadline_ms,
        reason=state.reason,
        message=state.message,
        waiting_for=state.waiting_for,
        operation_id=operation.operation_id if operation else state.operation_id,
        operation=operation_view(operation) if operation else None,
        conditions=list(state.conditions),
        can=list(state.can),
        generation=state.generation,
        version=state.version,
        driver=state.driver,
        machine_id=state.machine_id,
        gateway_version=state.gateway_version,
        runtime_name=state.instance_id,
        created_at=state.created_at_ms,
        updated_at=state.updated_at_ms,
        last_ready_at=state.last_ready_at_ms,
    )


def plan_view(kind: Kind, outcome: Outcome) -> PlanView:
    """The plan of one wish."""
    begins = outcome.decision.value == "begin"
    return PlanView(
        would=outcome.decision.value,
        commands=[f"instance.{kind.value}"] if begins else [],
        costs=_COSTS[kind] if begins else [],
        instance=instance_view(outcome.sight),
        operation=operation_view(outcome.operation) if outcome.operation else None,
    )


def run_view(run: Run) -> RunView:
    """The run for its owner."""
    return RunView(
        run_id=run.run_id,
        thread_id=run.thread_id,
        instance_id=run.instance_id,
        status=run.status,
        attempt=run.attempt,
        code=run.code,
        created_at=run.created_ms,
        updated_at=run.updated_ms,
    )
