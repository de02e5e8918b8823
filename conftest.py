"""Every test may use the fixtures of hatchery_common.testing.plugin; tests marked `real` find OpenClaw installed."""

from __future__ import annotations

import os

import pytest

pytest_plugins = ["hatchery_common.testing.plugin"]
_CACHE = os.environ.get("HATCHERY_CACHE")  # before any test points it elsewhere


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Install the pinned OpenClaw into the machine's cache, once, before the first test that needs the real one."""
    if item.get_closest_marker("real") is None or "HATCHERY_OPENCLAW_DIR" in os.environ:
        return
    from hatchery_cli.embedded.openclaw import ensure_openclaw

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("HATCHERY_CACHE", raising=False)
        if _CACHE is not None:
            patch.setenv("HATCHERY_CACHE", _CACHE)
        os.environ["HATCHERY_OPENCLAW_DIR"] = str(ensure_openclaw().parent)
