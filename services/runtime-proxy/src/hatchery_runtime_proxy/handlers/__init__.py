"""The use cases: turns under a watchdog, the probe, metered model calls, and the table of routes kept fresh."""
