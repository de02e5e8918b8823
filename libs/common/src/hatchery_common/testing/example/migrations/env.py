"""Alembic's entry: see hatchery_common.migrate."""

from hatchery_common.migrate import run_migrations
from hatchery_common.testing.example import metadata

run_migrations(metadata)
