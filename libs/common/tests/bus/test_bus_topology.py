"""Streams and durables follow from the declarations; migrating is repeatable."""

from __future__ import annotations

import pytest
from hatchery_common.bus import BusUnavailable
from hatchery_common.bus.replay import Operator
from hatchery_common.bus.topology import Durable, durables_of, missing
from hatchery_common.contracts.accounts import OpenAccount
from hatchery_common.contracts.billing import AccountOpened, LedgerPosted, UsageUnknown
from hatchery_common.errors import SetupError
from hatchery_common.testing.everything import everything, posted

NAMES = ["CMD", "EVT", "THREADS", "DLQ", "KV_routes"]


def test_a_service_has_one_durable_for_lanes_and_one_for_batches_on_each_stream() -> None:
    service = everything(
        consumes=(OpenAccount, AccountOpened, LedgerPosted, UsageUnknown), batched=(LedgerPosted, UsageUnknown)
    )
    assert durables_of(service) == [
        Durable("CMD", "everything", ("cmd.*.account.open.*",)),
        Durable("EVT", "everything", ("evt.*.account.opened.*",)),
        Durable("EVT", "everything-batch", ("evt.*.ledger.posted.*", "evt.*.ledger.usage_unknown.*")),
    ]
    assert durables_of(everything(consumes=())) == []


async def test_migrating_twice_changes_nothing(operator: Operator) -> None:
    service = everything()
    first = await operator.migrate([service])
    assert first.created == [*NAMES, "CMD/everything", "EVT/everything"]
    again = await operator.migrate([service])
    assert (again.created, again.updated, again.orphans) == ([], [], [])
    assert again.unchanged == first.created


async def test_a_changed_declaration_updates_its_durable_and_orphans_are_named(operator: Operator) -> None:
    await operator.migrate([everything()])
    wider = everything(consumes=(OpenAccount, AccountOpened, LedgerPosted))
    assert (await operator.migrate([wider])).updated == ["EVT/everything"]
    found = {durable.name: durable.filters for durable in await operator.durables("EVT")}
    assert found == {"everything": ("evt.*.account.opened.*", "evt.*.ledger.posted.*")}
    assert (await operator.migrate([everything()])).updated == ["EVT/everything"]
    assert (await operator.migrate([everything(consumes=(OpenAccount,))])).orphans == ["EVT/everything"]


async def test_a_missing_durable_is_named(operator: Operator) -> None:
    service = everything()
    assert await missing(operator.jetstream, [service]) == ["CMD/everything", "EVT/everything"]
    await operator.migrate([service])
    assert await missing(operator.jetstream, [service]) == []


async def test_a_stream_is_brought_back_to_its_declaration(operator: Operator) -> None:
    await operator.migrate([])
    info = await operator.jetstream.call("STREAM.INFO.CMD")
    await operator.jetstream.call("STREAM.UPDATE.CMD", {**info["config"], "max_age": 0})
    assert (await operator.migrate([])).updated == ["CMD"]


async def test_what_the_server_will_not_change_is_an_error_with_a_remedy(operator: Operator) -> None:
    other = {"name": "CMD", "subjects": ["cmd.>"], "retention": "workqueue", "storage": "memory"}
    await operator.jetstream.call("STREAM.CREATE.CMD", other)
    with pytest.raises(SetupError, match="CMD cannot be changed"):
        await operator.migrate([])


async def test_events_cannot_be_deleted(operator: Operator) -> None:
    await operator.migrate([])
    message = posted("t1", 1)
    await operator.jetstream.publish(message.subject, message.model_dump_json().encode(), {})
    info = await operator.jetstream.call("STREAM.INFO.EVT")
    assert info["config"]["deny_delete"] is True
    assert info["config"]["max_age"] == 0
    assert (await operator.jetstream.call("STREAM.INFO.CMD"))["config"]["max_age"] == 30 * 24 * 3600 * 10**9


async def test_a_subject_of_no_stream_is_unavailable_and_not_lost_silently(operator: Operator) -> None:
    await operator.migrate([])
    with pytest.raises(BusUnavailable, match="not acknowledged"):
        await operator.jetstream.publish("nowhere.at.all", b"", {}, deadline_s=0.3)
