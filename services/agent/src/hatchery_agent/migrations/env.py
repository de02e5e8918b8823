"""Entry point of Alembic for the schema `agent`."""

from hatchery_common.migrate import run_migrations

from hatchery_agent.adapters.sql import metadata

run_migrations(metadata)
