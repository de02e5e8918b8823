"""Every message of the contracts can be made for a test, with the fields that the test names."""

import pytest
from hatchery_common.contracts import accounts, billing, gateways, instances, threads
from hatchery_common.contracts.base import Message
from hatchery_common.testing.factories import message

ALL: tuple[type[Message], ...] = (
    accounts.OpenAccount,
    *instances.COMMANDS,
    instances.WakeInstance,
    *instances.EVENTS,
    *gateways.EVENTS,
    *billing.EVENTS,
    *threads.COMMANDS,
    *threads.EVENTS,
)


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_message_can_be_made(kind: type[Message]) -> None:
    made = message(kind, tenant="tother")
    assert made.tenant == "tother"
    assert kind.model_validate_json(made.model_dump_json()) == made
    assert made.subject.startswith(f"{kind.kind}.tother.{kind.aggregate}.{kind.verb}.")
