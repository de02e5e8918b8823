"""The bus: the only importer of nats. Publishing, standing-pull consumers with lanes, rpc, thread logs and routes."""

from hatchery_common.bus.attempts import ConsumerSettings
from hatchery_common.bus.deadletter import OnDead
from hatchery_common.bus.delivery import BatchSubscription, Cause, Delivery, Subscription
from hatchery_common.bus.envelope import Encoded, encode
from hatchery_common.bus.errors import (
    BusRefused,
    BusUnavailable,
    RemoteError,
    SequenceConflict,
    UndeclaredMessage,
    UnreadableMessage,
)
from hatchery_common.bus.facade import Bus
from hatchery_common.bus.jetstream import StreamState
from hatchery_common.bus.publisher import OutgoingRow, PartialPublish
from hatchery_common.bus.quarantine import Trial
from hatchery_common.bus.routes import Routes, encode_route
from hatchery_common.bus.threadlog import LogEntry, ThreadLog

__all__ = [
    "BatchSubscription",
    "Bus",
    "BusRefused",
    "BusUnavailable",
    "Cause",
    "ConsumerSettings",
    "Delivery",
    "Encoded",
    "LogEntry",
    "OnDead",
    "OutgoingRow",
    "PartialPublish",
    "RemoteError",
    "Routes",
    "SequenceConflict",
    "StreamState",
    "Subscription",
    "ThreadLog",
    "Trial",
    "UndeclaredMessage",
    "UnreadableMessage",
    "encode",
    "encode_route",
]
