"""Makes the stage of this directory importable by its test modules, and its fixture known to them."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from proxy_stage import proxy

__all__ = ["proxy"]
