"""Builders of deliveries and a ledger on a real Postgres, for the tests of billing."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from hatchery_billing.adapters.ledger import SqlLedger
from hatchery_billing.adapters.prices import Prices
from hatchery_billing.main import service
from hatchery_billing.ports import GrantDecision
from hatchery_billing.settings import BillingSettings, ModelRate
from hatchery_common.bus.delivery import Delivery
from hatchery_common.contracts.accounts import OpenAccount
from hatchery_common.contracts.base import Event
from hatchery_common.contracts.billing import CreditsGranted, UsageUnknown
from hatchery_common.contracts.gateways import UsageOpened, UsageOutcome, UsageRecorded
from hatchery_common.contracts.instances import InstanceMetered
from hatchery_common.database import Database
from hatchery_common.testing.postgres import PostgresServer, fresh_database

START_MS = 1_793_500_000_000  # 2026-11-01
MONTHLY = GrantDecision("monthly", "2026-11", 100_000, START_MS)
GRANTS_SENT = (
    "SELECT event_id, convert_from(payload, 'UTF8') FROM outbox WHERE subject LIKE '%.credits_granted.%' ORDER BY id"
)


class Sample:
    """Events with sensible values; the stream sequence counts up by itself."""

    def __init__(self) -> None:
        self.sequence = 0

    def delivery(self, event: Event, event_id: str | None = None, sequence: int | None = None) -> Delivery[Any]:
        self.sequence = self.sequence + 1 if sequence is None else sequence
        name = event_id or f"evt_{self.sequence}"
        return Delivery(
            event,
            name,
            event.message_type(),
            event.tenant,
            event.subject,
            "test",
            datetime.now(UTC),
            "EVT",
            self.sequence,
        )

    async def on_stream(self, deliveries: Sequence[Delivery[Any]]) -> AsyncIterator[Delivery[Any]]:
        """The deliveries as a reader of the stream meets them."""
        for delivery in sorted(deliveries, key=lambda each: each.sequence):
            yield delivery

    def grant(
        self, tenant: str = "ta", amount: int = 5_000_000, period: str = "2026-11", **more: Any
    ) -> CreditsGranted:
        given = {"grant": "monthly", "granted_at_ms": START_MS, **more}
        return CreditsGranted(tenant=tenant, period=period, amount_micro=amount, **given)

    def metered(self, seconds: int, tenant: str = "ta", boot: str = "b1", **more: Any) -> InstanceMetered:
        given = {"instance_id": f"ins_{tenant}", "observed_at_ms": START_MS + seconds * 1000, **more}
        return InstanceMetered(tenant=tenant, boot_id=boot, seconds_total=seconds, **given)

    def opened(self, call: str, tenant: str = "ta", at_ms: int = START_MS) -> UsageOpened:
        return UsageOpened(
            tenant=tenant, call_id=call, instance_id=f"ins_{tenant}", machine_id="m", provider="acme", model="big",
            opened_at_ms=at_ms,
        )  # fmt: skip

    def recorded(self, call: str, tokens: int = 1000, tenant: str = "ta", **more: Any) -> UsageRecorded:
        given: dict[str, Any] = {
            "provider": "acme", "model": "big", "outcome": UsageOutcome.COMPLETED, "output_tokens": 10,
            "opened_at_ms": START_MS, "ended_at_ms": START_MS + 900,
        }  # fmt: skip
        given |= {"instance_id": f"ins_{tenant}", "machine_id": "m", **more}
        return UsageRecorded(tenant=tenant, call_id=call, input_tokens=tokens, **given)

    def unknown(self, call: str, tenant: str = "ta") -> UsageUnknown:
        return UsageUnknown(
            tenant=tenant, call_id=call, instance_id=f"ins_{tenant}", opened_at_ms=START_MS,
            noticed_at_ms=START_MS + 900_000,
        )  # fmt: skip


@pytest.fixture
def sample() -> Sample:
    return Sample()


@pytest.fixture(scope="session")
def settings() -> BillingSettings:
    """Prices whose products do not come out even, so that rounding shows."""
    return BillingSettings(
        machine_price={"standard": Decimal("1.37"), "free": Decimal(0)},
        model_price={"acme/big": ModelRate(input=Decimal("2.5"), output=Decimal("10.001"), cached=Decimal("0.3"))},
        price_list="none",
    )


@pytest.fixture(scope="session")
def prices(settings: BillingSettings) -> Prices:
    return Prices(settings)


@pytest.fixture
async def database(postgres: PostgresServer) -> AsyncGenerator[Database]:
    async with fresh_database(postgres, service) as databases:
        yield databases["billing"]


@pytest.fixture
def grants(ledger: SqlLedger, database: Database, sample: Sample) -> Callable[[], Awaitable[list[Delivery[Any]]]]:
    """Opens three accounts and gives their grants as the stream brings them."""

    async def open_accounts() -> list[Delivery[Any]]:
        for tenant in ("ta", "tb", "tc"):
            wish = OpenAccount(tenant=tenant)
            kind, now = wish.message_type(), datetime.now(UTC)
            delivery = Delivery(wish, f"cmd_{tenant}", kind, tenant, wish.subject, "api", now, "CMD", 1)
            await ledger.open_account(delivery, opened_at_ms=START_MS, grant=MONTHLY)
        async with database.connect() as connection:
            rows = (await connection.execute(sa.text(GRANTS_SENT))).all()
        return [sample.delivery(CreditsGranted.model_validate_json(row[1]), event_id=row[0]) for row in rows]

    return open_accounts


@pytest.fixture
def ledger(database: Database, prices: Prices) -> SqlLedger:
    return SqlLedger(database, prices)
