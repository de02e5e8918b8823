"""The ledger: accounts, buckets, transactions and postings, what they are charged from, and how far events are applied."""

from alembic import op
from hatchery_common.migrate import create_common_tables

revision = "0001"
down_revision = None

TABLES = (
    """
    CREATE TABLE accounts (
        id varchar PRIMARY KEY,
        kind varchar NOT NULL,
        tenant varchar UNIQUE,
        balance bigint NOT NULL,
        held bigint NOT NULL,
        version bigint NOT NULL,
        suspended boolean NOT NULL,
        opened_at_ms bigint,
        CONSTRAINT accounts_tenant CHECK ((kind = 'tenant_credits') = (tenant IS NOT NULL)),
        CONSTRAINT accounts_kind CHECK (
            kind IN ('tenant_credits','revenue_machine','revenue_model','grants_issued','grants_expired')
        ),
        CONSTRAINT accounts_held CHECK (held >= 0),
        CONSTRAINT accounts_version CHECK (version >= 0)
    )
    """,
    """
    CREATE TABLE buckets (
        id varchar PRIMARY KEY,
        account_id varchar NOT NULL REFERENCES accounts (id),
        "grant" varchar NOT NULL,
        period varchar NOT NULL,
        priority integer NOT NULL,
        granted bigint NOT NULL,
        remaining bigint NOT NULL,
        expires_at_ms bigint,
        CONSTRAINT buckets_once_a_period UNIQUE (account_id, "grant", period),
        CONSTRAINT buckets_remaining CHECK (remaining >= 0 AND remaining <= granted)
    )
    """,
    "CREATE INDEX buckets_spendable ON buckets (account_id) WHERE remaining > 0",
    """
    CREATE TABLE transactions (
        number bigint PRIMARY KEY,
        id varchar NOT NULL UNIQUE,
        key varchar NOT NULL UNIQUE,
        kind varchar NOT NULL,
        tenant varchar NOT NULL,
        account_id varchar NOT NULL REFERENCES accounts (id),
        account_version bigint NOT NULL,
        amount bigint NOT NULL,
        balance_after bigint NOT NULL,
        reference varchar NOT NULL,
        description varchar NOT NULL,
        at_ms bigint NOT NULL,
        period varchar NOT NULL,
        event_id varchar NOT NULL,
        sequence bigint NOT NULL,
        details jsonb NOT NULL,
        posted_at_ms bigint NOT NULL,
        CONSTRAINT transactions_chain UNIQUE (account_id, account_version)
    )
    """,
    "CREATE INDEX transactions_reference ON transactions (reference)",
    """
    CREATE TABLE postings (
        transaction bigint NOT NULL REFERENCES transactions (number),
        line smallint NOT NULL,
        account_id varchar NOT NULL REFERENCES accounts (id),
        bucket_id varchar REFERENCES buckets (id),
        amount bigint NOT NULL,
        PRIMARY KEY (transaction, line),
        CONSTRAINT postings_amount CHECK (amount <> 0)
    )
    """,
    "CREATE INDEX postings_account ON postings (account_id)",
    "CREATE INDEX postings_bucket ON postings (bucket_id) WHERE bucket_id IS NOT NULL",
    """
    CREATE TABLE prices (
        id varchar PRIMARY KEY,
        kind varchar NOT NULL,
        name varchar NOT NULL,
        effective_from_ms bigint NOT NULL,
        source varchar NOT NULL,
        rates jsonb,
        CONSTRAINT prices_one_at_a_time UNIQUE (kind, name, effective_from_ms)
    )
    """,
    """
    CREATE TABLE boots (
        instance_id varchar NOT NULL,
        boot_id varchar NOT NULL,
        tenant varchar NOT NULL,
        size varchar NOT NULL,
        seconds_total bigint NOT NULL,
        posted_seconds bigint NOT NULL,
        gap_seconds bigint NOT NULL,
        accrued_pico bigint NOT NULL,
        charged_micro bigint NOT NULL,
        final boolean NOT NULL,
        last_observed_ms bigint NOT NULL,
        PRIMARY KEY (instance_id, boot_id),
        CONSTRAINT boots_seconds CHECK (posted_seconds >= 0 AND posted_seconds <= seconds_total),
        CONSTRAINT boots_charged CHECK (charged_micro >= 0 AND charged_micro = accrued_pico / 1000000)
    )
    """,
    """
    CREATE TABLE calls (
        call_id varchar PRIMARY KEY,
        tenant varchar NOT NULL,
        instance_id varchar NOT NULL,
        provider varchar NOT NULL,
        model varchar NOT NULL,
        state varchar NOT NULL,
        opened_at_ms bigint NOT NULL,
        ended_at_ms bigint,
        outcome varchar,
        input_tokens bigint NOT NULL,
        output_tokens bigint NOT NULL,
        cached_tokens bigint NOT NULL,
        amount_micro bigint,
        price_id varchar REFERENCES prices (id),
        noticed_at_ms bigint,
        CONSTRAINT calls_state CHECK (state IN ('opened','recorded','unknown','unpriced','refused')),
        CONSTRAINT calls_charged CHECK ((state = 'recorded') = (amount_micro IS NOT NULL AND price_id IS NOT NULL))
    )
    """,
    "CREATE INDEX calls_open ON calls (opened_at_ms) WHERE state = 'opened'",
    "CREATE INDEX calls_uncharged ON calls (tenant) WHERE state <> 'recorded'",
    """
    CREATE TABLE grants (
        tenant varchar NOT NULL,
        "grant" varchar NOT NULL,
        period varchar NOT NULL,
        amount_micro bigint NOT NULL,
        expires_at_ms bigint,
        granted_at_ms bigint NOT NULL,
        PRIMARY KEY (tenant, "grant", period),
        CONSTRAINT grants_amount CHECK (amount_micro > 0)
    )
    """,
    """
    CREATE TABLE usage (
        account_id varchar NOT NULL REFERENCES accounts (id),
        period varchar NOT NULL,
        granted_micro bigint NOT NULL,
        burned_micro bigint NOT NULL,
        machine_seconds bigint NOT NULL,
        input_tokens bigint NOT NULL,
        output_tokens bigint NOT NULL,
        PRIMARY KEY (account_id, period)
    )
    """,
    """
    CREATE TABLE events (
        position bigint PRIMARY KEY,
        event_id varchar NOT NULL UNIQUE,
        type varchar NOT NULL,
        tenant varchar NOT NULL,
        sequence bigint NOT NULL,
        outcome varchar NOT NULL,
        reason varchar
    )
    """,
    "CREATE INDEX events_sequence ON events (sequence)",
    "CREATE INDEX events_unsound ON events (outcome) WHERE outcome IN ('conflict','unpriced','refused')",
    """
    CREATE TABLE cursors (
        stream varchar PRIMARY KEY,
        last_sequence bigint NOT NULL,
        position bigint NOT NULL,
        transactions bigint NOT NULL,
        CONSTRAINT cursors_counts CHECK (position >= 0 AND transactions >= 0)
    )
    """,
)
RULES = (
    """
    CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION '% is append-only: correct it by a new transaction', TG_TABLE_NAME; END $$
    """,
    """
    CREATE FUNCTION check_balanced() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE found bigint;
    BEGIN
        SELECT p.transaction INTO found FROM postings p WHERE p.transaction IN (SELECT n.transaction FROM added n)
            GROUP BY p.transaction HAVING sum(p.amount) <> 0 LIMIT 1;
        IF found IS NOT NULL THEN RAISE EXCEPTION 'the postings of transaction % do not sum to zero', found; END IF;
        RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER postings_balanced AFTER INSERT ON postings REFERENCING NEW TABLE AS added
        FOR EACH STATEMENT EXECUTE FUNCTION check_balanced()
    """,
    *(
        f"CREATE TRIGGER {table}_kept BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
        "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
        for table in ("transactions", "postings", "prices")
    ),
)


def upgrade() -> None:
    create_common_tables()
    for statement in (*TABLES, *RULES):
        op.execute(statement)
