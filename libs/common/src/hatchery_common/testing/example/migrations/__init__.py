"""Migrations of the example service."""
