"""Alembic's entry: the provisioner's metadata."""

from hatchery_common.migrate import run_migrations

from hatchery_provisioner.adapters.tables import metadata

run_migrations(metadata)
