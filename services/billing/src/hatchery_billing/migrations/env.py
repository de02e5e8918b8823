"""Alembic's environment of billing."""

from hatchery_common.migrate import run_migrations

from hatchery_billing.adapters.sql import metadata

run_migrations(metadata)
