"""Entry point, also when started by its path in place of openclaw.mjs."""

from __future__ import annotations

import sys
from pathlib import Path

if sys.path and Path(sys.path[0]) == Path(__file__).parent:
    del sys.path[0]  # started by path: our module names must not hide others

from hatchery_common.testing.fake_gateway.process import main

sys.exit(main(sys.argv[1:]))
