"""Message factories: valid messages for tests, filled with what a test does not care about."""

from __future__ import annotations

from typing import Any, TypeVar

from hatchery_common.contracts.base import Message
from hatchery_common.contracts.instances import DesiredState, InstanceState, InstanceStatus
from hatchery_common.ids import tenant_key

M = TypeVar("M", bound=Message)

TENANT = tenant_key("factory@example.com")
INSTANCE = "ins_factory"
_COMMON: dict[str, Any] = {
    "tenant": TENANT,
    "instance_id": INSTANCE,
    "operation_id": "op_factory",
    "thread_id": "thd_factory",
    "run_id": "run_factory",
    "message_id": "msg_factory",
    "machine_id": "mch_factory",
    "call_id": "call_factory",
    "boot_id": "boot_factory",
    "generation": 1,
    "version": 1,
    "step": "wait_ready",
    "ok": True,
    "provider": "demo",
    "model": "demo",
    "outcome": "completed",
    "grant": "monthly",
    "period": "2026-11",
    "transaction_id": "txn_factory",
    "transaction_kind": "grant",
    "reference": "factory",
    "code": "internal",
}


def instance_state(**given: Any) -> InstanceState:
    """The public state of a ready instance, but for what is given."""
    values: dict[str, Any] = {
        "instance_id": INSTANCE,
        "tenant": TENANT,
        "name": "default",
        "version": 1,
        "generation": 1,
        "desired": DesiredState.RUNNING,
        "status": InstanceStatus.READY,
        "since_ms": 1_000,
        "driver": "process",
        "created_at_ms": 1_000,
        "updated_at_ms": 1_000,
    }
    return InstanceState(**(values | given))


def message(kind: type[M], **given: Any) -> M:
    """A valid message of this type; raises pydantic's error when a field is new and no factory value suits it."""
    values: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        if name in given or not field.is_required():
            continue
        if name in _COMMON:
            values[name] = _COMMON[name]
        elif name == "state":
            values[name] = instance_state(
                tenant=given.get("tenant", TENANT), instance_id=given.get("instance_id", INSTANCE)
            )
        elif name.endswith(("_ms", "_micro", "_total", "_seconds", "_tokens")):
            values[name] = 1_000
    return kind(**(values | given))
