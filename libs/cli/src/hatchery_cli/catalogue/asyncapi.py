"""The catalogue as an AsyncAPI 3.0 document."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from hatchery_cli.catalogue.registry import Catalogue, MessageEntry, RpcEntry

_HEADERS: dict[str, Any] = {
    "type": "object",
    "required": ["ce-id", "ce-type", "ce-source", "ce-time", "ce-tenantid"],
    "properties": {
        "ce-id": {"type": "string", "description": "the id by which inboxes know the message"},
        "ce-type": {"type": "string"},
        "ce-source": {"type": "string"},
        "ce-time": {"type": "string", "format": "date-time"},
        "ce-tenantid": {"type": "string"},
        "ce-causationid": {"type": "string", "description": "the id of the message that led to this one"},
        "ce-correlationid": {"type": "string", "description": "the id of the first message of the chain"},
        "traceparent": {"type": "string", "description": "W3C Trace Context"},
    },
}


def as_asyncapi(catalogue: Catalogue, version: str) -> dict[str, Any]:
    """The document; channel names are message types and rpc subjects."""
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    messages: dict[str, Any] = {}
    for entry in catalogue.messages:
        name = entry.message.message_type()
        channels[name] = _channel(entry)
        messages[name] = _message(name, entry.message.__name__, entry.about, headers=True)
        operations |= _operations(name, entry.producers, "send") | _operations(name, entry.consumers, "receive")
    for rpc in catalogue.rpcs:
        _add_rpc(rpc, channels, operations, messages)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Hatchery",
            "version": version,
            "description": "What travels on Hatchery's bus (NATS JetStream; CloudEvents 1.0 in binary mode).",
        },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages, "schemas": {"Envelope": _HEADERS, **_schemas(catalogue)}},
    }


def _channel(entry: MessageEntry) -> dict[str, Any]:
    message = entry.message
    return {
        "address": f"{message.kind}.{{tenant}}.{message.aggregate}.{message.verb}.{{{message.key}}}",
        "description": entry.about,
        "parameters": {
            "tenant": {"description": "the tenant key"},
            message.key: {"description": "the aggregate's id"},
        },
        "messages": {message.__name__: {"$ref": f"#/components/messages/{message.message_type()}"}},
        "tags": [{"name": entry.kind}, {"name": message.aggregate}],
    }


def _message(name: str, schema: str, about: str, *, headers: bool) -> dict[str, Any]:
    body: dict[str, Any] = {"name": name, "summary": about, "payload": {"$ref": f"#/components/schemas/{schema}"}}
    return {**body, "headers": {"$ref": "#/components/schemas/Envelope"}} if headers else body


def _operations(name: str, services: tuple[str, ...], action: Literal["send", "receive"]) -> dict[str, Any]:
    return {
        f"{service}.{action}.{name}": {
            "action": action,
            "channel": {"$ref": f"#/channels/{name}"},
            "tags": [{"name": service}],
        }
        for service in services
    }


def _add_rpc(entry: RpcEntry, channels: dict[str, Any], operations: dict[str, Any], messages: dict[str, Any]) -> None:
    name, reply = entry.rpc.subject, f"{entry.rpc.subject}.reply"
    request, response = entry.rpc.request.__name__, entry.rpc.response.__name__
    ask, answer = f"{name}.request", f"{name}.response"
    messages[ask] = _message(ask, request, entry.about, headers=False)
    messages[answer] = _message(answer, response, f"Answer to {name}", headers=False)
    channels[name] = {"address": name, "messages": {request: {"$ref": f"#/components/messages/{ask}"}}}
    channels[reply] = {"address": None, "messages": {response: {"$ref": f"#/components/messages/{answer}"}}}
    answered = {"address": {"location": "$message.header#/reply-to"}, "channel": {"$ref": f"#/channels/{reply}"}}
    for services, action in ((entry.callers, "send"), (entry.servers, "receive")):
        for service in services:
            operations[f"{service}.{action}.{name}"] = {
                "action": action,
                "channel": {"$ref": f"#/channels/{name}"},
                "reply": answered,
                "tags": [{"name": service}],
            }


def _schemas(catalogue: Catalogue) -> dict[str, Any]:
    models: list[type[BaseModel]] = [entry.message for entry in catalogue.messages]
    for entry in catalogue.rpcs:
        models += [entry.rpc.request, entry.rpc.response]
    wanted: list[tuple[type[BaseModel], JsonSchemaMode]] = [(model, "validation") for model in dict.fromkeys(models)]
    _, schema = models_json_schema(wanted, ref_template="#/components/schemas/{model}")
    return dict(schema.get("$defs", {}))
