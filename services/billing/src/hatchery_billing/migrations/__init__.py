"""Migrations of the schema `billing`."""
