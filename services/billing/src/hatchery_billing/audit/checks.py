"""What must hold, as queries: each returns one text per offender."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """A query that finds offenders, and what it means when it does."""

    code: str
    message: str
    query: str
    is_warning: bool = False


# Machine time is recalculated from a boot's running totals, which round down once. A second that costs a whole micro-USD is
# charged with its own report; only cheaper ones can be carried into a charge at another price. So what a boot can have cost per
# second lies between the least and the most of the prices of its charges and of the cheap ones of its size: one value, mostly.
_MACHINE_TIME = """WITH rates AS (
    SELECT id, name, (rates->>'second')::numeric AS rate FROM prices WHERE kind = 'machine' AND rates IS NOT NULL
), charges AS (
    SELECT id, reference AS instance_id, details->>'boot_id' AS boot_id, details->>'price_id' AS price_id,
        details->>'size' AS size, (details->>'to_seconds')::numeric AS seconds,
        -sum(amount) OVER (PARTITION BY reference, details->>'boot_id' ORDER BY account_version) AS charged
    FROM transactions WHERE kind = 'machine_time'
), possible AS (
    SELECT c.instance_id, c.boot_id, r.rate FROM (SELECT DISTINCT instance_id, boot_id, price_id FROM charges) AS c
        JOIN rates r ON r.id = c.price_id
    UNION ALL SELECT b.instance_id, b.boot_id, r.rate FROM boots b JOIN rates r ON r.name = b.size AND r.rate < 1000000
), bounds AS (
    SELECT instance_id, boot_id, min(rate) AS least, max(rate) AS most FROM possible GROUP BY instance_id, boot_id
)"""

CHECKS: tuple[Check, ...] = (
    Check(
        "transaction_unbalanced",
        "the postings of a transaction do not sum to zero",
        "SELECT t.id FROM postings p JOIN transactions t ON t.number = p.transaction GROUP BY t.id HAVING sum(p.amount) <> 0",
    ),
    Check(
        "transaction_amount",
        "a transaction's amount differs from what its postings did to the tenant's account",
        "SELECT t.id FROM transactions t LEFT JOIN postings p ON p.transaction = t.number AND p.account_id = t.account_id "
        "GROUP BY t.id, t.amount HAVING t.amount <> coalesce(sum(p.amount), 0)",
    ),
    Check(
        "balance_differs",
        "an account's balance differs from the sum of its postings",
        "SELECT a.id FROM accounts a LEFT JOIN postings p ON p.account_id = a.id GROUP BY a.id, a.balance "
        "HAVING a.balance <> coalesce(sum(p.amount), 0)",
    ),
    Check(
        "bucket_differs",
        "what remains in a bucket differs from its postings, or is out of its range",
        "SELECT b.id FROM buckets b LEFT JOIN postings p ON p.bucket_id = b.id GROUP BY b.id, b.granted, b.remaining "
        "HAVING b.remaining <> coalesce(sum(p.amount), 0) OR b.remaining < 0 OR b.remaining > b.granted",
    ),
    Check(
        "bucket_of_another",
        "a posting moves a bucket of another account",
        "SELECT b.id FROM postings p JOIN buckets b ON b.id = p.bucket_id WHERE b.account_id <> p.account_id",
    ),
    Check(
        "debt_beside_credit",
        "an account owes while one of its buckets still holds credits",
        "SELECT a.id FROM accounts a JOIN buckets b ON b.account_id = a.id GROUP BY a.id, a.balance "
        "HAVING sum(b.remaining) > 0 AND a.balance <> sum(b.remaining)",
    ),
    Check(
        "credit_without_grant",
        "an account has credits that no grant covers",
        "SELECT a.id FROM accounts a JOIN postings p ON p.account_id = a.id WHERE a.kind = 'tenant_credits' "
        "AND p.bucket_id IS NULL GROUP BY a.id HAVING sum(p.amount) > 0",
    ),
    Check(
        "chain_broken",
        "an account's transactions skip a version, or a balance after one does not follow from the one before",
        "SELECT id FROM (SELECT id, account_version, balance_after, "
        "row_number() OVER w AS version, sum(amount) OVER w AS balance FROM transactions "
        "WINDOW w AS (PARTITION BY account_id ORDER BY account_version)) AS chain "
        "WHERE version <> account_version OR balance <> balance_after",
    ),
    Check(
        "version_differs",
        "an account's version differs from the number of its transactions",
        "SELECT a.id FROM accounts a LEFT JOIN transactions t ON t.account_id = a.id GROUP BY a.id, a.version "
        "HAVING a.version <> count(t.number)",
    ),
    Check(
        "charged_twice",
        "one model call was charged more than once",
        "SELECT reference FROM transactions WHERE kind = 'model_usage' GROUP BY reference HAVING count(*) > 1",
    ),
    Check(
        "granted_twice",
        "one grant was posted more than once for its period",
        "SELECT account_id || ' ' || reference FROM transactions WHERE kind = 'grant' GROUP BY account_id, reference "
        "HAVING count(*) > 1",
    ),
    Check(
        "machine_time_overlaps",
        "charges of one boot overlap or leave seconds out",
        "SELECT id FROM (SELECT id, (details->>'from_seconds')::bigint AS since, coalesce(lag((details->>'to_seconds')::bigint) "
        "OVER (PARTITION BY reference, details->>'boot_id' ORDER BY account_version), 0) AS until "
        "FROM transactions WHERE kind = 'machine_time') AS spans WHERE since <> until",
    ),
    Check(
        "boot_differs",
        "a boot's cost, or how far it is charged, differs from its charges",
        "SELECT b.instance_id || ' ' || b.boot_id FROM boots b LEFT JOIN transactions t ON t.kind = 'machine_time' "
        "AND t.reference = b.instance_id AND t.details->>'boot_id' = b.boot_id "
        "GROUP BY b.instance_id, b.boot_id HAVING b.charged_micro <> -coalesce(sum(t.amount), 0) "
        "OR b.posted_seconds <> coalesce(max((t.details->>'to_seconds')::bigint), 0)",
    ),
    Check(
        "machine_charge_differs",
        "a charge of machine time differs from its seconds times its price",
        f"{_MACHINE_TIME} SELECT c.id FROM charges c LEFT JOIN rates r "  # noqa: S608 - all of it stands here
        "ON r.id = c.price_id AND r.name = c.size "
        "LEFT JOIN bounds b ON b.instance_id = c.instance_id AND b.boot_id = c.boot_id WHERE r.id IS NULL "
        "OR c.charged NOT BETWEEN div(c.seconds * b.least, 1000000) AND div(c.seconds * b.most, 1000000)",
    ),
    Check(
        "boot_seconds_differ",
        "what a boot has cost differs from its seconds times its price",
        f"{_MACHINE_TIME} SELECT b.instance_id || ' ' || b.boot_id FROM boots b "  # noqa: S608 - all of it stands here
        "LEFT JOIN bounds p ON p.instance_id = b.instance_id AND p.boot_id = b.boot_id "
        "WHERE (p.least IS NULL AND b.seconds_total > 0) "
        "OR b.accrued_pico NOT BETWEEN b.seconds_total * p.least AND b.seconds_total * p.most",
    ),
    Check(
        "machine_seconds_differ",
        "the seconds in a tenant's sums differ from those of its boots",
        "SELECT account_id FROM (SELECT account_id, sum(machine_seconds) AS seconds FROM usage GROUP BY account_id) AS u "
        "FULL JOIN (SELECT 'credits:' || tenant AS account_id, sum(seconds_total) AS seconds FROM boots GROUP BY 1) AS b "
        "USING (account_id) WHERE coalesce(u.seconds, 0) <> coalesce(b.seconds, 0)",
    ),
    Check(
        "call_differs",
        "a recorded call has no charge, or one of another amount",
        "SELECT c.call_id FROM calls c LEFT JOIN transactions t ON t.key = 'call:' || c.call_id "
        "WHERE c.state = 'recorded' AND (t.id IS NULL OR t.amount <> -c.amount_micro OR t.tenant <> c.tenant)",
    ),
    Check(
        "charge_without_call",
        "a charge names a call that was never recorded",
        "SELECT t.id FROM transactions t LEFT JOIN calls c ON c.call_id = t.reference AND c.state = 'recorded' "
        "WHERE t.kind = 'model_usage' AND c.call_id IS NULL",
    ),
    Check(
        "unknown_without_line",
        "an unknown call has no line that says so",
        "SELECT c.call_id FROM calls c LEFT JOIN transactions t ON t.key = 'unknown:' || c.call_id "
        "WHERE c.state = 'unknown' AND t.id IS NULL",
    ),
    Check(
        "grant_differs",
        "a posted grant was never decided, or with another amount",
        "SELECT b.id FROM buckets b JOIN accounts a ON a.id = b.account_id LEFT JOIN grants g "
        'ON g.tenant = a.tenant AND g."grant" = b."grant" AND g.period = b.period '
        "WHERE g.tenant IS NULL OR g.amount_micro <> b.granted",
    ),
    Check(
        "usage_differs",
        "a period's sums differ from its transactions",
        "SELECT coalesce(u.account_id, t.account_id) || ' ' || coalesce(u.period, t.period) FROM usage u FULL JOIN "
        "(SELECT account_id, period, coalesce(sum(amount) FILTER (WHERE kind = 'grant'), 0) AS granted, "
        "coalesce(-sum(amount) FILTER (WHERE kind IN ('machine_time', 'model_usage')), 0) AS burned, "
        "sum((details->>'input_tokens')::bigint) AS input, sum((details->>'output_tokens')::bigint) AS output "
        "FROM transactions GROUP BY 1, 2) t ON t.account_id = u.account_id AND t.period = u.period "
        "WHERE coalesce(u.granted_micro, 0) <> coalesce(t.granted, 0) OR coalesce(u.burned_micro, 0) <> coalesce(t.burned, 0) "
        "OR coalesce(u.input_tokens, 0) <> coalesce(t.input, 0) OR coalesce(u.output_tokens, 0) <> coalesce(t.output, 0)",
    ),
    Check(
        "cursor_differs",
        "the cursor differs from the events and transactions that are there",
        "SELECT coalesce(c.stream, 'no cursor') FROM (SELECT count(*) n, coalesce(max(position), 0) p, "
        "coalesce(max(sequence), 0) s FROM events) e CROSS JOIN (SELECT count(*) n, coalesce(max(number), 0) m "
        "FROM transactions) t LEFT JOIN cursors c ON true WHERE (c.stream IS NULL AND e.n + t.n > 0) "
        "OR c.position <> e.n OR e.n <> e.p OR c.last_sequence < e.s OR c.transactions <> t.n OR t.n <> t.m",
    ),
    Check(
        "transaction_without_event",
        "a transaction names an event that was never applied",
        "SELECT t.id FROM transactions t LEFT JOIN events e ON e.event_id = t.event_id "
        "WHERE e.event_id IS NULL OR e.outcome NOT IN ('posted', 'noted')",
    ),
    Check(
        "event_without_transaction",
        "an event counts as posted, but there is no transaction of it",
        "SELECT e.event_id FROM events e LEFT JOIN transactions t ON t.event_id = e.event_id "
        "WHERE e.outcome = 'posted' AND t.id IS NULL",
    ),
    Check(
        "grant_not_posted",
        "a grant was decided but its event has not come by yet",
        "SELECT g.tenant || ' ' || g.\"grant\" || ' ' || g.period FROM grants g LEFT JOIN buckets b "
        "ON b.id = g.tenant || ':' || g.\"grant\" || ':' || g.period WHERE b.id IS NULL",
        is_warning=True,
    ),
    Check(
        "event_unsound",
        "an event could not be charged: conflicting, unpriced or contradictory",
        "SELECT event_id || ' ' || outcome || ': ' || coalesce(reason, '') FROM events "
        "WHERE outcome IN ('conflict', 'unpriced', 'refused')",
        is_warning=True,
    ),
    Check(
        "usage_unknown",
        "a model call was opened and never recorded, so it was not charged",
        "SELECT call_id FROM calls WHERE state = 'unknown'",
        is_warning=True,
    ),
)
