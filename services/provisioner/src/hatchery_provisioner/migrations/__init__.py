"""Alembic history of the schema `provisioner`."""
