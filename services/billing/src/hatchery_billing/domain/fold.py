"""The fold: which fact does what. Everything that moves money is one of these five events."""

from __future__ import annotations

from hatchery_common.contracts.base import Event
from hatchery_common.contracts.billing import CreditsGranted, UsageUnknown
from hatchery_common.contracts.gateways import UsageOpened, UsageRecorded
from hatchery_common.contracts.instances import InstanceMetered

from hatchery_billing.domain.book import Applied, Book, Fact, Outcome
from hatchery_billing.domain.calls import apply_opened, apply_recorded, apply_unknown, is_chargeable, model_key
from hatchery_billing.domain.credits import apply_grant
from hatchery_billing.domain.flaws import flaw
from hatchery_billing.domain.machines import apply_metered, machine_key
from hatchery_billing.domain.prices import PriceKey

MONEY_EVENTS: tuple[type[Event], ...] = (InstanceMetered, UsageOpened, UsageRecorded, CreditsGranted, UsageUnknown)


def apply(book: Book, fact: Fact) -> Applied:
    """Take one fact into the book; never raises for what an event says, since one bad event must not stop the others."""
    reason = flaw(fact.event)
    if reason is not None:
        return Applied(Outcome.REFUSED, reason)
    match fact.event:
        case InstanceMetered() as event:
            return apply_metered(book, fact, event)
        case UsageOpened() as event:
            return apply_opened(book, fact, event)
        case UsageRecorded() as event:
            return apply_recorded(book, fact, event)
        case CreditsGranted() as event:
            return apply_grant(book, fact, event)
        case UsageUnknown() as event:
            return apply_unknown(book, fact, event)
        case _:
            return Applied(Outcome.REFUSED, f"{fact.event.message_type()} moves no money")


def price_key(event: Event) -> PriceKey | None:
    """What has to be in the price book before this event is applied; None where nothing can be charged.

    The name of a model is what its caller wrote. A price is kept for ever, so only a call that a provider answered asks for one.
    """
    match event:
        case InstanceMetered():
            return machine_key(event)
        case UsageRecorded() if is_chargeable(event):
            return model_key(event)
        case _:
            return None
