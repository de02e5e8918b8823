"""Alembic's entry: the api's metadata."""

from hatchery_common.migrate import run_migrations

from hatchery_api.adapters.tables import metadata

run_migrations(metadata)
