"""States, operations, and events about one user's instance as the provisioner would send them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hatchery_api.domain.operations import Kind, Operation, OperationState
from hatchery_api.handlers import projections
from hatchery_common.bus.delivery import Delivery
from hatchery_common.contracts.instances import DesiredState, InstanceState, InstanceStatus
from hatchery_common.contracts.operations import InstanceOperationFinished

ME = {"X-OA-Internal-Key": "oa-internal-key-0123456789", "X-OA-User-Id": "ada"}
INSTANCE = "/api/openclaw/instance"


def state(status: InstanceStatus, *, version=1, generation=1, operation_id=None, **changes) -> InstanceState:
    given = {
        "instance_id": "ins_a", "tenant": "t1", "name": "default", "version": version, "generation": generation,
        "desired": DesiredState.RUNNING, "status": status, "since_ms": 5, "operation_id": operation_id,
        "driver": "process", "machine_id": "mch_1", "created_at_ms": 1, "updated_at_ms": 5, "last_ready_at_ms": 4,
    }  # fmt: skip
    return InstanceState(**{**given, **changes})


def operation(kind: Kind, *, generation=1, at=OperationState.ACCEPTED, overdue_ms=None) -> Operation:
    return Operation("op_a", "t1", "ins_a", "default", kind, generation, at, 10, 20, 10, overdue_ms=overdue_ms)


class Events:
    """Delivers events about ada's one instance."""

    def __init__(self, world) -> None:
        self.world = world
        self.count = 0

    def ids(self):
        claim = next(iter(self.world.store.data["claims"].values()))
        return {"instance_id": claim.instance_id, "tenant": claim.tenant}

    async def __call__(self, handler, message, event_id=None):
        self.count += 1
        delivery = Delivery(
            message, event_id or f"evt_{self.count}", message.message_type(), message.tenant, message.subject,
            "provisioner", datetime.now(UTC), "EVT", self.count,
        )  # fmt: skip
        await handler(delivery, store=self.world.store, changes=self.world.door.changes)

    async def status(self, kind, status, **changes):
        ids = self.ids()
        shown_state = state(status, **{**ids, **changes})
        await self(projections.project_instance, kind(**ids, state=shown_state))


@pytest.fixture
async def provisioned(world):
    operation_id = (await world.client.post(INSTANCE, headers=ME)).json()["data"]["operation_id"]
    return Events(world), operation_id


async def finish(events, operation_id, generation=1):
    ended = InstanceOperationFinished(**events.ids(), operation_id=operation_id, generation=generation)
    await events(projections.end_operation, ended)
