"""What an `up` that died left running: found by pid files and command lines, stopped in the order in which `up` stops."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from hatchery_cli.embedded import nats, postgres
from hatchery_cli.embedded.budget import Budget
from hatchery_cli.embedded.layout import Layout
from hatchery_cli.embedded.machines import GATEWAYS_STOP_S, MACHINES_STOP_S, controllers, stop_machines
from hatchery_cli.embedded.processes import find_ours, stop_group
from hatchery_cli.embedded.state import LIVING

STOP_S = 27.0  # everything together; 30 are promised
SERVICES_STOP_S = 8.0
SERVERS_STOP_S = 8.0
SERVERS_LEAST_S = 4.0
ABANDONED = {
    "code": "abandoned",
    "message": "`up` ended without stopping its parts",
    "hint": "run `hatchery up` (it resumes) or `hatchery down`",
}


def is_abandoned(state: dict[str, Any] | None, *, owned: bool) -> bool:
    """Whether the `up` that wrote this state ended without saying that everything was stopped."""
    return not owned and state is not None and state["phase"] in LIVING


def parts(layout: Layout) -> list[int]:
    """Pids of services and servers of this directory, whoever watches over them."""
    return [*_services(layout), *nats.living(layout.nats), *postgres.living(layout.postgres)]


def settle(layout: Layout) -> int:
    """Stop services, then servers; returns how many. Machines go on and are adopted."""
    return _stop_services(layout, SERVICES_STOP_S) + _stop_servers(layout, 10.0)


def stop_all(layout: Layout) -> tuple[int, list[int]]:
    """Stop services, machines, servers, within STOP_S; returns how many there were, and the machines that had to be killed."""
    budget = Budget(STOP_S)
    stopped = _stop_services(layout, budget.share(SERVICES_STOP_S))
    stopped += len(controllers(layout.machines))
    limit = budget.share(MACHINES_STOP_S, keep_s=GATEWAYS_STOP_S + SERVERS_LEAST_S)
    killed = stop_machines(layout.machines, limit)
    return stopped + _stop_servers(layout, budget.share(SERVERS_STOP_S)), killed


def _services(layout: Layout) -> list[int]:
    return find_ours(["hatchery_cli", "run", "--stack", str(layout.root)])


def _stop_services(layout: Layout, within_s: float) -> int:
    left = _services(layout)
    stop_group(left, signal.SIGTERM, within_s)
    return len(left)


def _stop_servers(layout: Layout, within_s: float) -> int:
    with ThreadPoolExecutor(2) as pool:
        work = [
            pool.submit(nats.settle, layout.nats, within_s),
            pool.submit(postgres.settle, layout.postgres, within_s),
        ]
        return sum(one.result() for one in work)
