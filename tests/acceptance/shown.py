"""Where a run keeps the ids of the mission whose tests have passed."""

from __future__ import annotations

import pytest

SHOWN = pytest.StashKey[set[str]]()
