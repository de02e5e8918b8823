"""Versions of the example schema."""
