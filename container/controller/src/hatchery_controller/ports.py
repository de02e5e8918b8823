"""What the supervisor needs from the outside world."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from hatchery_controller.domain.bundle import Bundle
    from hatchery_controller.domain.ladder import Moment, Probe
    from hatchery_controller.domain.layout import Layout


class GatewayProcess(Protocol):
    """One running gateway. Whichever way it ends, nothing that it started outlives it."""

    @property
    def pid(self) -> int: ...

    async def wait(self) -> int:
        """The exit status (negative for a signal), after its group was killed and its output was read. Safe to repeat."""
        ...

    def terminate(self) -> None:
        """Asks it to end; does nothing when it has ended."""
        ...

    def kill(self) -> None:
        """Kills its whole group at once; does nothing when it has ended."""
        ...


class Launcher(Protocol):
    """Starts gateways."""

    def start(self, command: list[str], environment: dict[str, str], on_line: Callable[[str], None]) -> GatewayProcess:
        """Raises OSError when the program cannot be started."""
        ...

    async def port_is_free(self, port: int) -> bool:
        """Whether the gateway could listen there; waits shortly for a predecessor to let go."""
        ...


class Disk(Protocol):
    """The directories of one machine. All methods raise OSError."""

    def prepare(self, layout: Layout, uid: int | None, gid: int | None) -> None: ...

    def write_config(self, layout: Layout, config: dict[str, Any], uid: int | None, gid: int | None) -> None: ...

    def record(self, layout: Layout, machine_id: str | None, gateway_pid: int | None) -> None: ...

    def version_of(self, openclaw: str) -> str | None: ...


class Health(Protocol):
    """Asks the gateway how it is."""

    async def __call__(self, port: int) -> Probe:
        """Never raises: no answer is an answer."""
        ...


class Suspend(Protocol):
    """Asks the gateway to close its doors before it is stopped."""

    async def __call__(self, bundle: Bundle, timeout: float) -> str:
        """What came of it, in a word; best effort, never raises, never takes longer than the timeout."""
        ...


class Log(Protocol):
    """Where lines go; they are redacted on the way."""

    def write(self, source: str, line: str) -> None: ...

    def redacted(self, text: str) -> str: ...


class Clock(Protocol):
    """The present moment."""

    def __call__(self) -> Moment: ...
