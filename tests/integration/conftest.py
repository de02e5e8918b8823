"""Makes the stages of this directory importable by its test modules, and their fixtures known to them."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from agent_stage import around, command

__all__ = ["around", "command"]
