"""Contracts: released shapes stay readable, every wish has one owner, every fact one producer, the pages are fresh."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hatchery_cli.catalogue import samples
from hatchery_cli.catalogue.asyncapi import as_asyncapi
from hatchery_cli.catalogue.checkout import pages
from hatchery_cli.catalogue.registry import Catalogue, all_messages, build
from hatchery_common.bus.registry import stream_of
from hatchery_common.ids import is_token
from hatchery_common.run import installed_services
from pydantic import BaseModel, Field

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
GOLDEN = sorted((HERE / "golden").glob("*.json"))
MODELS = samples.released_models()


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return build(installed_services())


@pytest.mark.parametrize("name", MODELS)
def test_a_released_shape_is_unchanged(name: str):
    recorded = samples.read_fingerprints(HERE)
    assert name in recorded, f"{name} is new: record it with `hatchery catalogue --write`"
    assert recorded[name] == samples.fingerprint(MODELS[name]), f"{name} has changed its shape. {samples.ADVICE}"


def test_no_released_shape_has_vanished():
    gone = set(samples.read_fingerprints(HERE)) - set(MODELS)
    assert not gone, f"history still holds {sorted(gone)}: their classes must stay"


@pytest.mark.parametrize("name", MODELS)
def test_every_sample_ever_released_is_still_read(name: str):
    released = samples.golden_files(HERE / "golden", name)
    assert released, f"{name} has no golden sample: `hatchery catalogue --write`"
    for path in released:
        data = json.loads(path.read_text())
        read = MODELS[name].model_validate(data)
        again = json.loads(read.model_dump_json())
        assert {key: again[key] for key in data} == data, f"{path.name} is read, but not as it was written"


@pytest.mark.parametrize("name", MODELS)
def test_a_field_of_a_later_release_is_ignored(name: str):
    data = {**samples.sample(MODELS[name]), "a_field_of_tomorrow": 1}
    MODELS[name].model_validate(data)


def test_every_golden_file_belongs_to_a_shape():
    known = {path for name in MODELS for path in samples.golden_files(HERE / "golden", name)}
    assert set(GOLDEN) == known


def test_every_command_has_one_consumer_every_event_one_producer_every_rpc_one_server(catalogue: Catalogue):
    assert catalogue.problems() == []


@pytest.mark.parametrize("path", ["docs/reference/catalogue.md", "docs/reference/asyncapi.json"])
def test_generated_pages_are_fresh(catalogue: Catalogue, path: str):
    assert (ROOT / path).read_text() == pages(ROOT, catalogue)[ROOT / path], "run `hatchery catalogue --write`"


@pytest.mark.parametrize("message", all_messages(), ids=lambda message: message.message_type())
def test_a_message_fits_the_subject_grammar_of_its_stream(message: Any):
    read = message.model_validate(samples.sample(message))
    kind, tenant, aggregate, verb, identifier = read.subject.split(".")
    assert (kind, aggregate, verb) == (message.kind, message.aggregate, message.verb)
    assert is_token(tenant)
    assert is_token(identifier)
    assert stream_of(read.subject) == {"cmd": "CMD", "evt": "EVT"}[kind]


def test_no_message_on_cmd_or_evt_carries_text_of_people():
    """They cannot be erased (design section 3): no e-mail address, name of a person, prompt or message text."""
    forbidden = {"email", "text", "prompt", "content", "user_name", "title"}
    for message in all_messages():
        assert not forbidden & set(_property_names(message.model_json_schema())), message.message_type()


def test_every_reference_of_the_asyncapi_document_leads_somewhere(catalogue: Catalogue):
    document = as_asyncapi(catalogue, "1")
    assert document["asyncapi"].startswith("3.")
    for reference in _references(document):
        place: Any = document
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]
    assert {op["action"] for op in document["operations"].values()} == {"send", "receive"}


def test_words_may_change_but_names_types_and_demands_may_not():
    class Base(BaseModel):
        title: str = Field(description="old words")

    class Reworded(BaseModel):
        """Said anew."""

        title: str = Field(description="new words")

    class Renamed(BaseModel):
        heading: str

    class Retyped(BaseModel):
        title: int

    prints = [samples.fingerprint(model) for model in (Base, Reworded, Renamed, Retyped)]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_writing_keeps_released_samples_and_adds_one_for_a_grown_shape(
    tmp_path: Path,
):
    samples.write(tmp_path)
    assert samples.check(tmp_path) == []
    path = tmp_path / "golden" / "hatchery.run.started.v1.json"
    older = {key: value for key, value in json.loads(path.read_text()).items() if key != "attempt"}
    path.write_text(json.dumps(older))
    assert [p.name for p in samples.write(tmp_path)] == ["hatchery.run.started.v1.2.json"]
    assert json.loads(path.read_text()) == older
    assert samples.check(tmp_path) == [], "the older sample, without the field, is still read"


def test_a_broken_promise_is_told_with_what_to_do(tmp_path: Path):
    samples.write(tmp_path)
    prints = tmp_path / "fingerprints.json"
    known = json.loads(prints.read_text())
    prints.write_text(json.dumps({**known, "hatchery.run.started.v1": "other", "hatchery.gone.v1": "x"}))
    (tmp_path / "golden" / "route.2.json").write_text("{}")
    problems = samples.check(tmp_path)
    assert len(problems) == 3
    assert "version_number" in next(problem for problem in problems if "run.started" in problem)


def _property_names(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        yield from schema.get("properties", {})
        for value in schema.values():
            yield from _property_names(value)


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from _references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)
