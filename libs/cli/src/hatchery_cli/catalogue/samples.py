"""Golden samples and schema fingerprints: the promise that whatever was once released can still be read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from hatchery_common.contracts.routes import Route
from hatchery_common.contracts.threads import ThreadEntry
from pydantic import BaseModel, ValidationError

from hatchery_cli.catalogue.registry import all_messages, all_rpcs

_TEXT_KEYS = ("title", "description", "examples")  # words may change, shapes may not
ADVICE = (
    "If you only added an optional field, accept it with `hatchery catalogue --write`: the old samples stay and must still be "
    "read. Anything else breaks readers of old history: leave this class as it is and add a new one beside it with "
    "`version_number` one higher (docs/how-to/add-an-event.md)."
)


def released_models() -> dict[str, type[BaseModel]]:
    """Every shape that is stored or crosses services, by its name: messages, rpc bodies, log entries, routes."""
    models: dict[str, type[BaseModel]] = {message.message_type(): message for message in all_messages()}
    for rpc in all_rpcs():
        models[f"{rpc.subject}.request"] = rpc.request
        models[f"{rpc.subject}.response"] = rpc.response
    return {**models, "thread-entry": ThreadEntry, "route": Route}


def fingerprint(model: type[BaseModel]) -> str:
    """A hash of the shape that readers rely on."""
    text = json.dumps(_shape(model.model_json_schema()), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _shape(value: Any, *, names: bool = False) -> Any:
    """The schema without its words; keys of `properties` and `$defs` are names and stay, whatever they are called."""
    if isinstance(value, dict):
        items = cast("Mapping[str, Any]", value).items()
        return {k: _shape(v, names=k in ("properties", "$defs")) for k, v in items if names or k not in _TEXT_KEYS}
    if isinstance(value, list):
        return [_shape(item) for item in cast("list[Any]", value)]
    return value


def sample(model: type[BaseModel]) -> dict[str, Any]:
    """A valid instance with every field filled, the same every time."""
    schema = model.model_json_schema()
    built = _value(schema, schema.get("$defs", {}), "sample")
    return json.loads(model.model_validate(built).model_dump_json())


def _value(schema: Mapping[str, Any], definitions: Mapping[str, Any], name: str) -> Any:
    if "$ref" in schema:
        return _value(definitions[str(schema["$ref"]).rpartition("/")[2]], definitions, name)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            return _value(next(s for s in schema[several] if s.get("type") != "null"), definitions, name)
    return _plain(schema, definitions, name)


def _plain(schema: Mapping[str, Any], definitions: Mapping[str, Any], name: str) -> Any:
    match schema.get("type"):
        case "object":
            properties = cast("Mapping[str, Mapping[str, Any]]", schema.get("properties", {}))
            return {key: _value(field, definitions, key) for key, field in properties.items()}
        case "array":
            items = schema.get("prefixItems") or [schema.get("items", {"type": "string"})]
            return [_value(item, definitions, name) for item in items]
        case "integer" | "number":
            low = schema.get("minimum", schema.get("exclusiveMinimum", 0) + 1)
            return min(max(1, low), schema.get("maximum", max(1, low)))
        case "boolean":
            return True
        case "string":
            return "2026-11-20T12:00:00Z" if schema.get("format") == "date-time" else f"{name}-1".lower()
        case _:
            return {}


def golden_files(directory: Path, name: str) -> list[Path]:
    """All samples ever released of this shape, oldest first: `<name>.json`, `<name>.2.json`, …"""
    first = directory / f"{name}.json"
    later = sorted(directory.glob(f"{name}.[0-9]*.json"), key=lambda path: int(path.suffixes[-2][1:]))
    return ([first] if first.exists() else []) + [
        path for path in later if path.stem.removeprefix(f"{name}.").isdigit()
    ]


def check(directory: Path) -> list[str]:
    """What broke the promise: changed or vanished shapes, samples that cannot be read any more."""
    models = released_models()
    known = read_fingerprints(directory)
    problems = [
        f"{name} is gone: history still holds it, so its class must stay" for name in known if name not in models
    ]
    for name, model in models.items():
        if name not in known:
            problems.append(f"{name} is new: record it with `hatchery catalogue --write`")
        elif known[name] != fingerprint(model):
            problems.append(f"{name} has changed its shape. {ADVICE}")
        problems += _unreadable(directory, name, model)
    return problems


def _unreadable(directory: Path, name: str, model: type[BaseModel]) -> Iterable[str]:
    for path in golden_files(directory / "golden", name):
        try:
            model.model_validate_json(path.read_text())
        except ValidationError as error:
            yield f"{path.name} was released and can no longer be read: {error.error_count()} errors. {ADVICE}"


def write(directory: Path) -> list[Path]:
    """Record new shapes and add a sample where a shape has grown; released samples are never changed."""
    golden = directory / "golden"
    golden.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for name, model in released_models().items():
        text = json.dumps(sample(model), indent=2, sort_keys=True) + "\n"
        released = golden_files(golden, name)
        if text not in [path.read_text() for path in released]:
            path = golden / (f"{name}.{len(released) + 1}.json" if released else f"{name}.json")
            path.write_text(text)
            written.append(path)
    prints = {name: fingerprint(model) for name, model in released_models().items()}
    text = json.dumps({**read_fingerprints(directory), **prints}, indent=2, sort_keys=True) + "\n"
    path = directory / "fingerprints.json"
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
        written.append(path)
    return written


def read_fingerprints(directory: Path) -> dict[str, str]:
    """The recorded fingerprints by name."""
    path = directory / "fingerprints.json"
    return json.loads(path.read_text()) if path.exists() else {}
