"""Hatchery's shared library: contracts, bus, outbox, service runner, settings and test tools."""
