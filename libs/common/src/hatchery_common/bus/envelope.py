"""CloudEvents 1.0 in NATS binary mode: message to headers and body, and back."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Any, NamedTuple

from pydantic import ValidationError

from hatchery_common.bus.delivery import Cause, Delivery
from hatchery_common.bus.errors import UnreadableMessage
from hatchery_common.bus.listening import Raw
from hatchery_common.bus.registry import Registry
from hatchery_common.contracts.base import Message
from hatchery_common.errors import InvalidInput
from hatchery_common.ids import is_token, new_id

MESSAGE_ID = "Nats-Msg-Id"


class Encoded(NamedTuple):
    """A message ready for an outbox row or the wire."""

    subject: str
    headers: dict[str, str]
    body: bytes


class Placed(NamedTuple):
    """Where a delivered message lies, read from its reply subject."""

    stream: str
    sequence: int
    deliveries: int


def encode(
    message: Message,
    *,
    source: str,
    id: str | None = None,  # noqa: A002 - the envelope's own word
    cause: Delivery[Any] | Cause | None = None,
    time: datetime | None = None,
) -> Encoded:
    """The envelope of a message: its id is also the one that JetStream de-duplicates by; a cause hands its trace on."""
    for token in (message.tenant, message.aggregate_id):
        if not is_token(token):
            raise InvalidInput(f"{token!r} cannot stand in a subject of {message.message_type()}")
    identifier = id or new_id(message.kind)
    headers = {
        MESSAGE_ID: identifier,
        "ce-specversion": "1.0",
        "ce-id": identifier,
        "ce-source": source,
        "ce-type": message.message_type(),
        "ce-time": (time or datetime.now(UTC)).isoformat(),
        "ce-subject": message.aggregate_id,
        "ce-datacontenttype": "application/json",
        "ce-tenantid": message.tenant,
        "ce-correlationid": identifier if cause is None else cause.correlation_id or cause.id,
        "traceparent": next_trace(None if cause is None else cause.traceparent),
    }
    if cause is not None:
        headers["ce-causationid"] = cause.id
    return Encoded(message.subject, headers, message.model_dump_json().encode())


def next_trace(parent: str | None) -> str:
    """A traceparent (W3C Trace Context): the parent's trace with a new span, or a new trace."""
    span = os.urandom(8).hex()
    if parent is not None and len(parent) == 55:
        return f"{parent[:36]}{span}{parent[52:]}"
    return f"00-{os.urandom(16).hex()}-{span}-01"


def placed(reply: str) -> Placed:
    """Stream, sequence and delivery count out of `$JS.ACK.<stream>.<durable>.<deliveries>.<sequence>…`."""
    tokens = reply.split(".")
    if len(tokens) > 9:  # the longer form has a domain and an account hash before the stream
        return Placed(tokens[4], int(tokens[7]), int(tokens[6]))
    return Placed(tokens[2], int(tokens[5]), int(tokens[4]))


def decode(raw: Raw, registry: Registry, place: Placed) -> Delivery[Any]:
    """The delivery of a raw message; raises UnreadableMessage, with `reason` in its context, for anything dubious."""
    headers = raw.headers or {}
    kind = headers.get("ce-type", "")
    message_class = registry.find(kind)
    if message_class is None:
        raise UnreadableMessage(f"no one here knows the type {kind!r}", reason="unknown_type")
    try:
        message = message_class.model_validate_json(raw.data)
        identifier, source, tenant = headers["ce-id"], headers["ce-source"], headers["ce-tenantid"]
        moment = datetime.fromisoformat(headers["ce-time"])
    except KeyError as error:
        raise UnreadableMessage(f"the header {error} is missing", reason="broken_envelope") from error
    except ValidationError as error:
        places = ", ".join(".".join(map(str, found["loc"])) or "body" for found in error.errors()[:5])
        raise UnreadableMessage(f"the body does not fit {kind}: {places}", reason="broken_body") from error
    except ValueError as error:
        raise UnreadableMessage("the header ce-time is no time", reason="broken_envelope") from error
    if message.tenant != tenant or message.subject != raw.subject:
        raise UnreadableMessage("subject, tenant header and body disagree", reason="disagreement")
    return Delivery(
        message,
        identifier,
        kind,
        tenant,
        raw.subject,
        source,
        moment,
        place.stream,
        place.sequence,
        place.deliveries,
        headers.get("ce-causationid"),
        headers.get("ce-correlationid"),
        headers.get("traceparent"),
    )
