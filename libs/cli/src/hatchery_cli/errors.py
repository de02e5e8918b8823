"""What can keep the stack from starting, each with a code and the remedy.

SetupError (hatchery_common)
├── PortTaken          another process listens where we must
├── DiskFull           no room left for data or for an installation
├── PlaceUnusable      a directory cannot be written, or other users of this machine cannot reach it
├── AlreadyRunning     another `up` owns this data directory
├── NotRunning         a command needs a running stack
├── StillRunning       an `up` does not end, and is not known well enough to be killed
├── PythonBroken       a package of ours cannot be imported or lacks its files
├── NpmUnreachable     the npm registry does not answer
├── InstallFailed      an installation ended wrong for another reason
├── ServerFailed       an embedded server or the services did not start
├── DatabaseRefused    Postgres refuses the administrator's login, or lacks the database
├── PrepareFailed      the database or the bus could not be prepared, for a reason that has no code
└── StateDamaged       a file of the data directory does not hold what it should
"""

from __future__ import annotations

from hatchery_common.errors import SetupError


class PortTaken(SetupError):
    """Another process listens where we must."""

    code = "port_taken"


class DiskFull(SetupError):
    """No room left for data or for an installation."""

    code = "disk_full"


class PlaceUnusable(SetupError):
    """A directory cannot be written, or other users of this machine cannot reach it."""

    code = "place_unusable"


class AlreadyRunning(SetupError):
    """Another `up` owns this data directory."""

    code = "already_running"


class NotRunning(SetupError):
    """A command needs a running stack."""

    code = "not_running"


class StillRunning(SetupError):
    """An `up` does not end, and is not known well enough to be killed."""

    code = "still_running"


class PythonBroken(SetupError):
    """A package of ours cannot be imported or lacks its files."""

    code = "python_broken"


class NpmUnreachable(SetupError):
    """The npm registry does not answer."""

    code = "npm_unreachable"


class InstallFailed(SetupError):
    """An installation ended wrong."""

    code = "install_failed"


class ServerFailed(SetupError):
    """An embedded server or the services did not start."""

    code = "server_failed"


class DatabaseRefused(SetupError):
    """Postgres refuses the administrator's login, or lacks the database."""

    code = "database_refused"


class PrepareFailed(SetupError):
    """The database or the bus could not be prepared, for a reason that has no code of its own."""

    code = "prepare_failed"


class StateDamaged(SetupError):
    """A file of the data directory does not hold what it should."""

    code = "state_damaged"
