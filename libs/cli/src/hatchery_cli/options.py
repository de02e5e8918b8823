"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Directory = Annotated[
    Path | None,
    typer.Option(
        "--dir",
        help="Data directory.",
        show_default="HATCHERY_DIR, or /var/lib/hatchery/default as root, else below your home",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
