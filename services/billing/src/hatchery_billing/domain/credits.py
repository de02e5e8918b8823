"""Grants, their consumption and their lapse."""

from __future__ import annotations

from hatchery_common.contracts.billing import CreditsGranted

from hatchery_billing.domain.accounts import AccountKind, Bucket, bucket_id
from hatchery_billing.domain.book import Applied, Book, Fact, Outcome, Posting, TransactionKind

DEFAULT_PRIORITY = 100


def apply_grant(book: Book, fact: Fact, event: CreditsGranted) -> Applied:
    """Put granted credits into a bucket of their own; a debt is repaid from it at once."""
    name = bucket_id(event.tenant, event.grant, event.period)
    existing = book.buckets.get(name)
    if existing is not None:
        same = existing.granted == event.amount_micro
        return (
            Applied(Outcome.DUPLICATE) if same else Applied(Outcome.CONFLICT, f"{name} was granted {existing.granted}")
        )
    lapse(book, fact, event.tenant, event.granted_at_ms)
    account = book.tenant_account(event.tenant)
    owed = max(0, -account.balance)
    book.buckets[name] = Bucket(
        name, account.id, event.grant, event.period, DEFAULT_PRIORITY, event.amount_micro, 0, event.expires_at_ms
    )
    lines = [
        Posting(account.id, event.amount_micro, name),
        Posting(AccountKind.GRANTS_ISSUED, -event.amount_micro),
    ]
    if owed:
        repaid = min(owed, event.amount_micro)
        lines += [Posting(account.id, -repaid, name), Posting(account.id, repaid)]
    book.post(
        fact, TransactionKind.GRANT, f"grant:{name}", lines,
        reference=f"{event.grant}:{event.period}", description=f"{event.grant} credits for {event.period}",
        at_ms=event.granted_at_ms,
    )  # fmt: skip
    book.usage_of(event.tenant, event.granted_at_ms).granted_micro += event.amount_micro
    return Applied(Outcome.POSTED)


def spend(book: Book, tenant: str, amount: int, revenue: AccountKind, at_ms: int) -> list[Posting]:
    """The postings of a charge: from the buckets in order, the rest (if any) from no bucket, which is a debt."""
    if amount == 0:
        return []
    account = book.tenant_account(tenant)
    lines: list[Posting] = []
    left = amount
    for bucket in book.buckets_of(account.id):
        if left and bucket.spendable_at(at_ms):
            part = min(left, bucket.remaining)
            lines.append(Posting(account.id, -part, bucket.id))
            left -= part
    if left:
        lines.append(Posting(account.id, -left))
    return [*lines, Posting(revenue, amount)]


def lapse(book: Book, fact: Fact, tenant: str, at_ms: int) -> None:
    """Take back what is left of grants that have lapsed. The first money fact after the lapse does it: mostly the next grant."""
    account = book.tenant_account(tenant)
    for bucket in book.buckets_of(account.id):
        if bucket.remaining == 0 or bucket.spendable_at(at_ms):
            continue
        lines = [
            Posting(account.id, -bucket.remaining, bucket.id),
            Posting(AccountKind.GRANTS_EXPIRED, bucket.remaining),
        ]
        book.post(
            fact, TransactionKind.GRANT_EXPIRED, f"expired:{bucket.id}", lines,
            reference=f"{bucket.grant}:{bucket.period}", description=f"what was left of {bucket.grant} {bucket.period} lapsed",
            at_ms=at_ms,
        )  # fmt: skip
