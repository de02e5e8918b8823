"""Why an instance is in trouble, and what its owner or operator can do: every reason has a remedy."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Typed codes of failures; a driver or a controller may add its own."""

    START_DEADLINE = "start_deadline"
    CRASH_LOOP = "crash_loop"
    UNHEALTHY = "gateway_unhealthy"
    CONTROLLER_SILENT = "controller_silent"
    CONFIG_REJECTED = "config_rejected"
    NOT_INSTALLED = "openclaw_not_installed"
    DISK_FULL = "disk_full"
    PORT_TAKEN = "port_taken"
    NO_PORT = "no_free_port"
    STORAGE_MISSING = "storage_missing"
    LABELS_UNREADABLE = "labels_unreadable"
    SHARED_USER = "shared_user"
    DRIVER_TIMEOUT = "driver_timeout"
    DRIVER_BROKEN = "driver_broken"
    MACHINE_UNKNOWN = "machine_unknown"
    MACHINE_LOST = "machine_lost"
    STOP_OVERDUE = "stop_overdue"
    DELETE_OVERDUE = "delete_overdue"
    NEWER_WISH = "newer_wish"
    DELETED = "instance_deleted"
    UNKNOWN = "unknown_instance"
    PROBE = "probe_failed"
    UNDELIVERABLE = "undeliverable"


_REMEDIES = {
    Reason.START_DEADLINE: "look at the log tail of the step wait_ready, then start it again",
    Reason.CRASH_LOOP: "look at the log, undo the last change of its configuration, then start it again",
    Reason.UNHEALTHY: "restart it; if it comes back, look at its log",
    Reason.CONTROLLER_SILENT: "look at the controller's log in the instance's directory, then restart it",
    Reason.CONFIG_REJECTED: "correct the named setting in the instance's overrides, then start it again",
    Reason.NOT_INSTALLED: "install OpenClaw with `hatchery up` or set HATCHERY_PROVISIONER_OPENCLAW, then start it again",
    Reason.DISK_FULL: "free space below the machines' directory, then start it again",
    Reason.PORT_TAKEN: "end the program that holds the port, then start it again",
    Reason.NO_PORT: "widen HATCHERY_PROVISIONER_PORT_FIRST/PORT_COUNT or delete unused instances, then start it again",
    Reason.STORAGE_MISSING: "restore the instance's directory or a backup; an empty one is never put in its place",
    Reason.SHARED_USER: (
        "run the stack as root, so that each gateway has a user of its own; or, if all your users may reach each other's data, "
        "set HATCHERY_PROVISIONER_TRUST_ALL_USERS=true; then start it again"
    ),
    Reason.LABELS_UNREADABLE: "remove the broken machine.json from the instance's directory, then start it again",
    Reason.DRIVER_TIMEOUT: "see whether the machine's host is overloaded, then start it again",
    Reason.DRIVER_BROKEN: "see the error in the provisioner's log; it is a fault of ours, so please report it",
    Reason.MACHINE_UNKNOWN: "see what the driver reports of the machine, then start or delete it",
    Reason.MACHINE_LOST: "start it again",
    Reason.STOP_OVERDUE: "the machine is being killed; see the controller's log",
    Reason.DELETE_OVERDUE: "removal goes on; see the provisioner's log for what holds it up",
    Reason.UNDELIVERABLE: "ask for it again; the operator finds the cause with `hatchery stream dlq ls`",
    "storage_full": "free space below the machines' directory, then start it again",
    "gateway_port_taken": "end the program that holds the port, then start it again",
    "gateway_not_startable": "see whether Node and OpenClaw are installed, then start it again",
    "boot_bundle_invalid": "the provisioner's settings and the controller disagree: update both",
    "sealed_environment_unreadable": "give the instance its secrets again",
}


def remedy_of(reason: str) -> str:
    """What to do about it."""
    return _REMEDIES.get(reason, "start it again; if it comes back, look at its log")


def explained(reason: str, detail: str = "") -> str:
    """One message: what happened and what to do about it."""
    detail = detail.partition("; remedy: ")[0]
    return f"{detail.strip() or reason.replace('_', ' ')}; remedy: {remedy_of(reason)}"
