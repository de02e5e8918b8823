"""Settings come from a mapping, name what is wrong, and never show a value."""

from pathlib import Path

import pytest
from hatchery_common.errors import SetupError
from hatchery_common.settings import Settings, key, load, service_environment
from pydantic import AliasChoices, Field
from pydantic_settings import SettingsConfigDict


class Example(Settings):
    """Settings of a test."""

    model_config = SettingsConfigDict(env_prefix="HATCHERY_EXAMPLE_")

    secret: str = Field(validation_alias=AliasChoices("secret", "OLD_SECRET"))
    number: int = 3
    names: tuple[str, ...] = ()


def test_fields_are_read_by_prefix_alias_and_default() -> None:
    assert load(Example, {"HATCHERY_EXAMPLE_SECRET": "a"}) == Example(secret="a")
    assert load(Example, {"OLD_SECRET": "a", "HATCHERY_EXAMPLE_NUMBER": "7"}).number == 7
    assert load(Example, {"OLD_SECRET": "a", "HATCHERY_EXAMPLE_SECRET": "b"}).secret == "b"
    assert load(Example, {"OLD_SECRET": "a", "HATCHERY_EXAMPLE_NAMES": '["x"]'}).names == ("x",)


def test_an_error_names_the_variable_and_shows_no_value() -> None:
    with pytest.raises(SetupError) as missing:
        load(Example, {})
    assert "HATCHERY_EXAMPLE_SECRET" in missing.value.message
    with pytest.raises(SetupError) as wrong:
        load(Example, {"OLD_SECRET": "hidden", "HATCHERY_EXAMPLE_NUMBER": "hidden-too"})
    assert "HATCHERY_EXAMPLE_NUMBER" in wrong.value.message
    assert "hidden" not in wrong.value.message


def test_a_key_is_named_when_it_is_missing_short_or_no_hex() -> None:
    assert key({"HATCHERY_KEY_MODEL_TOKEN": "00" * 32}, "model-token") == bytes(32)
    for environment in ({}, {"HATCHERY_KEY_MODEL_TOKEN": "zz"}, {"HATCHERY_KEY_MODEL_TOKEN": "00"}):
        with pytest.raises(SetupError, match="HATCHERY_KEY_MODEL_TOKEN"):
            key(environment, "model-token")


def test_a_service_sees_its_own_secrets_file_and_never_the_root(tmp_path: Path) -> None:
    (tmp_path / "api.env").write_text("# comment\nHATCHERY_NATS_SEED=S1\n\n")
    base = {"HATCHERY_SECRETS_DIR": str(tmp_path), "HATCHERY_ROOT_KEY": "r", "PLAIN": "p"}
    merged = service_environment("api", base)
    assert merged["HATCHERY_NATS_SEED"] == "S1"
    assert merged["PLAIN"] == "p"
    assert "HATCHERY_ROOT_KEY" not in merged
    with pytest.raises(SetupError, match="billing"):
        service_environment("billing", base)
