"""A stand-in for `node openclaw.mjs gateway run` that speaks the same protocol, starts at once and needs no Node.

Run as `python <ENTRY> gateway run` (ENTRY is the path of the module file) or `python -m hatchery_common.testing.fake_gateway
gateway run`. It reads OPENCLAW_CONFIG_PATH and OPENCLAW_STATE_DIR as the real one does. What it imitates was measured on
OpenClaw 2026.9.6 and is checked against it by tests/contracts/gateway_conformance.py.

Faults by environment: FAKE_GATEWAY_READY_AFTER_MS (delays /ready), FAKE_GATEWAY_NEVER_READY=1, FAKE_GATEWAY_CRASH_AFTER_MS
(exit 1), FAKE_GATEWAY_EXIT (exits with that status at start), FAKE_GATEWAY_IGNORE_SIGTERM=1.
"""

from __future__ import annotations

from pathlib import Path

ENTRY = Path(__file__).with_name("__main__.py")
VERSION = "2026.9.6"

__all__ = ["ENTRY", "VERSION"]
