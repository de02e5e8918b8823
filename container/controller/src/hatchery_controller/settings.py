"""What a controller is told on its command line, and the limits an operator may change by environment."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hatchery_controller.domain.ladder import Limits

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PREFIX = "HATCHERY_CONTROLLER_"


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything a controller knows before its boot bundle arrives. Times are seconds."""

    root: Path
    host: str
    port: int
    boot_fd: int | None
    boot_file: Path | None
    limits: Limits
    boot_deadline: float
    probe_starting: float
    probe_steady: float
    probe_timeout: float
    stop_deadline: float
    log_bytes: int


def read_settings(argv: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """The settings of this process; a wrong argument or value ends it with status 2 and a sentence."""
    parser = _parser()
    given = parser.parse_args(argv)
    seconds = partial(_above_zero, parser, environ)
    limits = Limits(
        live_within=seconds("LIVE_DEADLINE_S", 180),
        ready_within=seconds("READY_DEADLINE_S", 180),
        responsive_within=seconds("RESPONSIVE_DEADLINE_S", 180),
        healthy_after=seconds("HEALTHY_AFTER_S", 30),
        backoff_first=seconds("BACKOFF_FIRST_S", 1),
        backoff_longest=seconds("BACKOFF_LONGEST_S", 300),
    )
    return Settings(
        root=given.root.absolute(),
        host=given.host,
        port=given.port,
        boot_fd=given.boot_fd,
        boot_file=given.boot_file,
        limits=limits,
        boot_deadline=seconds("BOOT_DEADLINE_S", 30),
        probe_starting=seconds("PROBE_STARTING_S", 0.1),
        probe_steady=seconds("PROBE_STEADY_S", 5),
        probe_timeout=seconds("PROBE_TIMEOUT_S", 5),
        stop_deadline=seconds("STOP_DEADLINE_S", 20),
        log_bytes=int(seconds("LOG_BYTES", 5 * 1024 * 1024)),
    )


def _parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="hatchery-controller", description="Configures and supervises one gateway.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--boot-fd", type=int, help="inherited pipe that carries the boot bundle")
    source.add_argument("--boot-file", type=Path, help="0400 file with the boot bundle; removed once read")
    parser.add_argument("--root", type=Path, required=True, help="directory of this machine")
    parser.add_argument("--port", type=int, required=True, help="port of the controller's own HTTP API")
    parser.add_argument("--host", default="127.0.0.1", help="address of that API")
    return parser


def _above_zero(parser: argparse.ArgumentParser, environ: Mapping[str, str], name: str, default: float) -> float:
    """A limit of the environment, or its default; anything but a finite number above 0 ends the process."""
    text = environ.get(PREFIX + name)
    try:
        value = default if text is None else float(text)
    except ValueError:
        value = -1.0
    if not math.isfinite(value) or value <= 0:
        parser.error(f"{PREFIX}{name} must be a number above 0")
    return value
