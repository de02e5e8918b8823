"""One stack on this machine: its servers and services, started in order and stopped in order."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence

from hatchery_cli.embedded import nats, node, openclaw, postgres
from hatchery_cli.embedded.budget import Budget
from hatchery_cli.embedded.cache import cache_root
from hatchery_cli.embedded.layout import SERVICES, Choices, Layout, Ports
from hatchery_cli.embedded.leftovers import SERVERS_LEAST_S, SERVERS_STOP_S, SERVICES_STOP_S, STOP_S, settle
from hatchery_cli.embedded.logs import rotate_all
from hatchery_cli.embedded.machines import GATEWAYS_STOP_S, MACHINES_STOP_S, stop_machines
from hatchery_cli.embedded.places import require_ports, require_room
from hatchery_cli.embedded.probe import all_ready, problems
from hatchery_cli.embedded.state import StateFile
from hatchery_cli.embedded.supervisor import Condition, Part, Supervisor
from hatchery_cli.errors import AlreadyRunning

_ROOM_MIB = 200
_FIRST_UID = 60_000_000  # beyond what systems and container engines hand out
_LOCK_ATTEMPTS = 4
_HOUSEKEEPING_S = 10.0
Changed = Callable[[str, Condition], None]


class Stack:
    """Starts, watches and stops everything that belongs to one data directory."""

    def __init__(self, layout: Layout, choices: Choices, changed: Changed) -> None:
        self.layout = layout
        self.choices = choices
        self.ports = Ports(choices.port)
        self.state = StateFile(layout, choices)
        self._tell = changed
        self._supervisor = Supervisor(self._changed)
        self._housekeeping: asyncio.Task[None] | None = None

    def _changed(self, name: str) -> None:
        condition = self._supervisor.conditions[name]
        self.state.part(name, condition)
        self._tell(name, condition)

    async def start(self) -> None:
        """Start servers and services, in order; raises a SetupError with its remedy, and then nothing is left running."""
        settle(self.layout)
        require_ports(self._needed_ports())
        require_room(self.layout.root, _ROOM_MIB)
        self._housekeeping = asyncio.create_task(self._keep_house(), name="housekeeping")
        try:
            async with asyncio.TaskGroup() as group:
                if self.choices.database_url is None:
                    group.create_task(self._start_postgres())
                if self.choices.nats_url is None:
                    group.create_task(self._start_nats())
            await self._start_services()
        except BaseExceptionGroup as several:
            await self.stop()
            raise several.exceptions[0] from several
        except BaseException:
            await self.stop()  # with the machines: the provisioner may have started some before the others were ready
            raise
        self.state.phase("ready")

    async def stop(self) -> list[int]:
        """Stop services, machines, servers, in this order; returns controllers that had to be killed."""
        self.state.phase("stopping")
        budget = Budget(STOP_S)
        killed: list[int] = []
        try:
            await self._stop_parts(("services", *SERVICES), budget.share(SERVICES_STOP_S))
        finally:  # a step that fails must not leave what follows it running
            try:
                limit = budget.share(MACHINES_STOP_S, keep_s=GATEWAYS_STOP_S + SERVERS_LEAST_S)
                killed = await asyncio.to_thread(stop_machines, self.layout.machines, limit)
            finally:
                await self._stop_parts(("nats", "postgres"), budget.share(SERVERS_STOP_S))
        if self._housekeeping is not None:
            self._housekeeping.cancel()
        self.state.phase("stopped")
        return killed

    async def _stop_parts(self, names: Sequence[str], within_s: float) -> None:
        await asyncio.gather(*(self._supervisor.stop_one(name, within_s) for name in names))

    async def _keep_house(self) -> None:
        """What needs doing now and then while the stack runs; for ever."""
        while True:
            await asyncio.sleep(_HOUSEKEEPING_S)
            self.state.retry()
            await asyncio.to_thread(rotate_all, self.layout.logs)

    def _needed_ports(self) -> dict[str, int]:
        needed = self.ports.of_services()
        if self.choices.nats_url is None:
            needed["NATS"] = self.ports.nats
        if self.choices.database_url is None:
            needed["Postgres"] = self.ports.postgres
        return needed

    async def _start_postgres(self) -> None:
        binaries = await asyncio.to_thread(postgres.ensure_binaries)
        password = superuser_password(self.layout.root_key())
        owner = await asyncio.to_thread(postgres.initialise, binaries, self.layout.postgres, password)
        log = self.layout.logs / "postgres.log"
        await self._supervisor.start(postgres.part(binaries, self.layout.postgres, self.ports.postgres, owner, log))

    async def _start_nats(self) -> None:
        log = self.layout.logs / "nats.log"
        nats.write_config(self.layout.nats, self.ports.nats, log)
        await self._supervisor.start(nats.part(self.layout.nats, self.ports.nats, log))

    async def _start_services(self) -> None:
        if not self.choices.processes:
            await self._supervisor.start(self._services("services", (), prepare=True))
            return
        first, *others = SERVICES
        await self._supervisor.start(self._services(first, (first,), prepare=True))
        async with asyncio.TaskGroup() as group:
            for name in others:
                group.create_task(self._supervisor.start(self._services(name, (name,), prepare=False)))

    def _services(self, part: str, names: Sequence[str], *, prepare: bool) -> Part:
        """A process with the named services (none: all); the one that prepares migrates database and bus before them."""
        options = ("--prepare",) if prepare else ()
        shown = tuple(names) or SERVICES
        return Part(
            name=part,
            argv=(sys.executable, "-m", "hatchery_cli", "run", *names, *options, "--stack", str(self.layout.root)),
            environment=dict(os.environ),
            log=self.layout.logs / f"{part}.log",
            ready=lambda: all_ready(self.ports, shown),
            explain=lambda: problems(self.ports, shown),
            ready_within_s=600,  # migrations of large tables are part of it
            slow_after_s=40,
            poll_s=0.05,
            stop_within_s=SERVICES_STOP_S,
        )


def superuser_password(root_key: bytes) -> str:
    """The password of the embedded Postgres' superuser."""
    from hatchery_common.secrets import derive

    return derive(root_key, "postgres/superuser").hex()


def database_url(layout: Layout, choices: Choices) -> str:
    """The database as its administrator: the chosen one, else the embedded one."""
    if choices.database_url:
        return choices.database_url
    password = superuser_password(layout.root_key())
    return f"postgresql://{postgres.SUPERUSER}:{password}@127.0.0.1:{Ports(choices.port).postgres}/hatchery"


def nats_url(choices: Choices) -> str:
    """Where NATS answers: the chosen server, else the embedded one."""
    return choices.nats_url or f"nats://127.0.0.1:{Ports(choices.port).nats}"


def environment(layout: Layout, choices: Choices, given: Mapping[str, str]) -> dict[str, str]:
    """The settings of this stack's services; what the operator set explicitly wins, but the bus is the one that `up` chose."""
    ports = Ports(choices.port)
    first, last = ports.gateways
    ours = {
        "HATCHERY_SECRETS_DIR": str(layout.secrets),
        "HATCHERY_HEALTH_BASE_PORT": str(ports.base + 10),
        "HATCHERY_API_PORT": str(ports.api),
        "HATCHERY_API_RUNTIME_URL": f"http://127.0.0.1:{ports.runtime}",
        "HATCHERY_AGENT_RUNTIME_URL": f"http://127.0.0.1:{ports.runtime}",
        "HATCHERY_RUNTIME_PROXY_PORT": str(ports.runtime),
        "HATCHERY_RUNTIME_PROXY_LLM_PORT": str(ports.llm),
        "HATCHERY_PROVISIONER_MODEL_BASE_URL": f"http://127.0.0.1:{ports.llm}/llm/v1",
        "HATCHERY_PROVISIONER_MACHINES_DIR": str(layout.machines),
        "HATCHERY_PROVISIONER_PORT_FIRST": str(first),
        "HATCHERY_PROVISIONER_PORT_COUNT": str(last - first + 1),
        # Users of gateways are this stack's own: two stacks on one host must not share any.
        "HATCHERY_PROVISIONER_UID_FIRST": str(_FIRST_UID + ports.base * (last - first + 1)),
        "HATCHERY_PROVISIONER_UID_COUNT": str(last - first + 1),
        "HATCHERY_PROVISIONER_NODE": str(cache_root() / node.entry_name() / "bin/node"),
        "HATCHERY_PROVISIONER_OPENCLAW": str(openclaw.path()),
    }
    if choices.trust_all_users:
        ours["HATCHERY_PROVISIONER_TRUST_ALL_USERS"] = "true"
    if model := given.get("HATCHERY_RUNTIME_PROXY_PROVIDER_MODEL") or given.get("OPENCLAW_DEFAULT_MODEL"):
        ours["HATCHERY_PROVISIONER_MODEL_ID"] = model  # machines ask by name for what the one provider offers
    chosen = {name: value for name, value in given.items() if value != ""}
    # Streams and users were made there: services that went to another server would find nothing.
    return ours | chosen | {"HATCHERY_NATS_URL": nats_url(choices)}


@contextlib.contextmanager
def owned(layout: Layout) -> Generator[None]:
    """Own this data directory until the end of the block or of the process; raises AlreadyRunning."""
    with layout.lock_file.open("w") as file:
        for attempt in range(_LOCK_ATTEMPTS):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if attempt == _LOCK_ATTEMPTS - 1:
                    raise AlreadyRunning(
                        f"a stack already runs in {layout.root}",
                        hint="see `hatchery status`; stop it with `hatchery down`",
                    ) from error
                time.sleep(0.05)  # `status` holds the lock for a moment only
        yield


def is_owned(layout: Layout) -> bool:
    """Whether an `up` holds this directory now."""
    if not layout.lock_file.exists():
        return False
    try:
        with owned(layout):
            return False
    except AlreadyRunning:
        return True
