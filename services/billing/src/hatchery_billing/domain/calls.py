"""Model calls: opened, then recorded (which is the charge) or, after 15 minutes, unknown."""

from __future__ import annotations

from hatchery_common.contracts.billing import UsageUnknown
from hatchery_common.contracts.gateways import UsageOpened, UsageOutcome, UsageRecorded

from hatchery_billing.domain.accounts import AccountKind
from hatchery_billing.domain.book import Applied, Book, Fact, Outcome, TransactionKind
from hatchery_billing.domain.credits import lapse, spend
from hatchery_billing.domain.prices import Price, PriceKey, PriceKind
from hatchery_billing.domain.rating import rate_call
from hatchery_billing.domain.usage import SETTLED, Call, CallState


def is_chargeable(event: UsageRecorded) -> bool:
    """Whether the record can be charged: its counts are known, and it did not fail before it spent a token."""
    return event.usage_known and not _is_unspent(event)


def model_key(event: UsageRecorded) -> PriceKey:
    """What prices this call."""
    return PriceKey(PriceKind.MODEL, f"{event.provider}/{event.model}")


def apply_opened(book: Book, fact: Fact, event: UsageOpened) -> Applied:
    """Note the call; a record or an unknown may already be in."""
    call = book.calls.get(event.call_id)
    if call is not None and call.tenant != event.tenant:
        return _foreign(event.call_id)
    if call is not None:
        return Applied(Outcome.DUPLICATE if call.state is CallState.OPENED else Outcome.STALE)
    book.calls[event.call_id] = Call(
        event.call_id,
        event.tenant,
        event.instance_id,
        event.provider,
        event.model,
        CallState.OPENED,
        event.opened_at_ms,
    )
    book.changed.add(event.call_id)
    return Applied(Outcome.NOTED)


def apply_recorded(book: Book, fact: Fact, event: UsageRecorded) -> Applied:
    """Settle the call, once; a record that comes after `unknown` still counts."""
    call = book.calls.get(event.call_id)
    if call is not None and call.tenant != event.tenant:
        return _foreign(event.call_id)
    if call is not None and call.state in SETTLED:
        same = _tokens(call) == (event.input_tokens, event.output_tokens, event.cached_tokens)
        return (
            Applied(Outcome.DUPLICATE) if same else Applied(Outcome.CONFLICT, f"call {call.call_id} has other counts")
        )
    noted_unknown = call is not None and call.state is CallState.UNKNOWN
    if not event.usage_known and noted_unknown:
        return Applied(Outcome.DUPLICATE)
    call = _write(book, event)
    if not event.usage_known:
        call.state = CallState.UNKNOWN
        why = "ended without the provider's token counts"
        _unknown_line(book, fact, call, event.ended_at_ms, why)
        return Applied(Outcome.POSTED, alert=f"call {call.call_id} {why}: not charged")
    if _is_unspent(event):
        call.state = CallState.UNSPENT  # whether its model has a price does not matter
        return Applied(Outcome.NOTED)
    if event.cached_tokens > event.input_tokens:
        call.state = CallState.REFUSED
        return Applied(Outcome.REFUSED, f"{event.cached_tokens} cached of {event.input_tokens} input tokens")
    price = book.prices.at(model_key(event), event.opened_at_ms)
    if price is None:
        call.state = CallState.UNPRICED
        return Applied(Outcome.UNPRICED, f"model {model_key(event).name} has no price")
    return _charge(book, fact, event, call, price)


def apply_unknown(book: Book, fact: Fact, event: UsageUnknown) -> Applied:
    """Write a line for a call that nobody recorded; a record that came meanwhile rules."""
    call = book.calls.get(event.call_id)
    if call is not None and call.tenant != event.tenant:
        return _foreign(event.call_id)
    if call is not None and call.state is not CallState.OPENED:
        return Applied(Outcome.STALE)
    if call is None:
        call = Call(event.call_id, event.tenant, event.instance_id, "", "", CallState.OPENED, event.opened_at_ms)
        book.calls[event.call_id] = call
    call.state = CallState.UNKNOWN
    book.changed.add(call.call_id)
    _unknown_line(book, fact, call, event.noticed_at_ms, "opened and never recorded")
    return Applied(Outcome.POSTED)


def _charge(book: Book, fact: Fact, event: UsageRecorded, call: Call, price: Price) -> Applied:
    assert price.rates is not None
    tokens = {
        "input_tokens": event.input_tokens,
        "cached_tokens": event.cached_tokens,
        "output_tokens": event.output_tokens,
    }
    charge = rate_call(price.rates, **tokens)
    lapse(book, fact, event.tenant, event.ended_at_ms)
    call.state, call.amount_micro, call.price_id = CallState.RECORDED, charge.amount_micro, price.id
    used = book.usage_of(event.tenant, event.ended_at_ms)
    used.burned_micro += charge.amount_micro
    used.input_tokens += event.input_tokens
    used.output_tokens += event.output_tokens
    details = {**tokens, "provider": event.provider, "model": event.model, "instance_id": event.instance_id}
    book.post(
        fact, TransactionKind.MODEL_USAGE, f"call:{call.call_id}",
        spend(book, event.tenant, charge.amount_micro, AccountKind.REVENUE_MODEL, event.ended_at_ms),
        reference=call.call_id,
        description=f"{event.model}: {event.input_tokens} in, {event.output_tokens} out"
        + ("" if event.outcome == "completed" else f" ({event.outcome})"),
        at_ms=event.ended_at_ms,
        details={**details, "price_id": price.id, "remainder_pico": charge.remainder_pico},
    )  # fmt: skip
    return Applied(Outcome.POSTED)


def _write(book: Book, event: UsageRecorded) -> Call:
    call = Call(
        event.call_id, event.tenant, event.instance_id, event.provider, event.model, CallState.RECORDED,
        event.opened_at_ms, event.ended_at_ms, event.outcome.value,
        event.input_tokens, event.output_tokens, event.cached_tokens,
    )  # fmt: skip
    book.calls[call.call_id] = call
    book.changed.add(call.call_id)
    return call


def _unknown_line(book: Book, fact: Fact, call: Call, at_ms: int, why: str) -> None:
    book.post(
        fact, TransactionKind.USAGE_UNKNOWN, f"unknown:{call.call_id}", [],
        reference=call.call_id, description=f"model call {why}: not charged", at_ms=at_ms,
        details={"instance_id": call.instance_id, "opened_at_ms": call.opened_at_ms},
    )  # fmt: skip


def _is_unspent(event: UsageRecorded) -> bool:
    counts = (event.input_tokens, event.output_tokens, event.cached_tokens)
    return event.outcome is UsageOutcome.FAILED and counts == (0, 0, 0)


def _foreign(call_id: str) -> Applied:
    return Applied(Outcome.REFUSED, f"call {call_id} belongs to another tenant")


def _tokens(call: Call) -> tuple[int, int, int]:
    return call.input_tokens, call.output_tokens, call.cached_tokens
