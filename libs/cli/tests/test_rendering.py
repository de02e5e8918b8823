"""Secrets files: each service gets its own keys and nobody else's."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hatchery_cli.rendering import authorization, role_url, service_secrets, write_secrets
from hatchery_common.errors import SettingsWrong
from hatchery_common.run import installed_services
from hatchery_common.secrets import derive, public_key
from hatchery_common.service import Parts, Service, ServiceContext
from hatchery_common.settings import Settings, load, read_env_file
from pydantic import AliasChoices, Field
from pydantic_settings import SettingsConfigDict

ROOT = bytes(range(32))
ADMIN_URL = "postgresql://boss:pw@db.example:5433/hatchery?sslmode=require"


@asynccontextmanager
async def opened(context: ServiceContext) -> AsyncGenerator[Parts]:
    del context
    yield Parts()


def service(name: str, **more: object) -> Service:
    return Service(name, open=opened, **more)  # type: ignore[arg-type]


def test_own_keys_only() -> None:
    signer = service_secrets(
        ROOT, service("provisioner", schema="provisioner", secrets=("model-token",)), ADMIN_URL, {}
    )
    proxy = service_secrets(ROOT, service("runtime-proxy", secrets=("model-token.public",)), ADMIN_URL, {})
    assert set(signer) == {"HATCHERY_NATS_SEED", "HATCHERY_DATABASE_URL", "HATCHERY_KEY_MODEL_TOKEN"}
    assert set(proxy) == {"HATCHERY_NATS_SEED", "HATCHERY_KEY_MODEL_TOKEN_PUBLIC"}
    assert proxy["HATCHERY_KEY_MODEL_TOKEN_PUBLIC"] == public_key(derive(ROOT, "model-token")).hex()
    assert signer["HATCHERY_NATS_SEED"] != proxy["HATCHERY_NATS_SEED"]


def test_role_url_keeps_the_place_and_hides_the_administrator() -> None:
    url = role_url(ROOT, "billing", ADMIN_URL)
    assert url.startswith("postgresql://hatchery_billing:")
    assert url.endswith("@db.example:5433/hatchery?sslmode=require")
    assert "boss" not in url


def test_explicit_keys_win() -> None:
    given = {"HATCHERY_KEY_WEBSITE_JWT": "chosen"}
    values = service_secrets(ROOT, service("api", secrets=("website-jwt",)), ADMIN_URL, given)
    assert values["HATCHERY_KEY_WEBSITE_JWT"] == "chosen"


class WebsiteSettings(Settings):
    """Secrets that a website knows by its own name."""

    model_config = SettingsConfigDict(env_prefix="HATCHERY_API_")

    shared: str = Field(
        validation_alias=AliasChoices("shared", "NEXTAUTH_SECRET", "HATCHERY_KEY_WEBSITE_JWT"), repr=False
    )
    previous: str | None = Field(default=None, repr=False)
    host: str = Field(default="127.0.0.1")


def test_secrets_that_the_operator_set_go_to_the_services_that_read_them() -> None:
    api = service("api", secrets=("website-jwt",), settings=(WebsiteSettings,))
    given = {"NEXTAUTH_SECRET": "the website's own", "HATCHERY_API_PREVIOUS": "older", "HATCHERY_API_HOST": "::1"}
    values = service_secrets(ROOT, api, ADMIN_URL, given)
    assert load(WebsiteSettings, values).shared == "the website's own"
    assert load(WebsiteSettings, values).previous == "older"
    assert "HATCHERY_API_HOST" not in values, "what is no secret stays in the environment"
    assert "NEXTAUTH_SECRET" not in service_secrets(ROOT, service("agent"), ADMIN_URL, given)
    assert "NEXTAUTH_SECRET" not in service_secrets(ROOT, api, ADMIN_URL, {"NEXTAUTH_SECRET": ""})


def test_what_a_file_cannot_hold_is_refused() -> None:
    api = service("api", settings=(WebsiteSettings,))
    for value in ("two\nHATCHERY_DATABASE_URL=lines", " begins-with-one"):
        with pytest.raises(SettingsWrong, match="NEXTAUTH_SECRET") as caught:
            service_secrets(ROOT, api, ADMIN_URL, {"NEXTAUTH_SECRET": value})
        assert value not in str(caught.value)


def test_the_real_services_take_over_the_websites_and_the_providers_secrets() -> None:
    given = {
        "NEXTAUTH_SECRET": "n" * 32, "INTERNAL_API_SECRET": "i" * 16, "OA_INTERNAL_KEY": "o" * 16, "OPENAI_API_KEY": "sk-1",
    }  # fmt: skip
    found = {
        name: set(service_secrets(ROOT, one, ADMIN_URL, given)) & set(given)
        for name, one in installed_services().items()
    }
    assert found["api"] == {"NEXTAUTH_SECRET", "INTERNAL_API_SECRET", "OA_INTERNAL_KEY"}
    assert found["runtime-proxy"] == {"OPENAI_API_KEY"}
    assert all(not names for name, names in found.items() if name not in ("api", "runtime-proxy"))


def test_files_are_private_and_stable(place: Path) -> None:
    services = [service("api", secrets=("website-jwt",)), service("agent", schema="agent")]
    first = write_secrets(place, ROOT, services, ADMIN_URL, {})
    before = [path.stat().st_mtime_ns for path in first]
    assert [path.stat().st_mode & 0o777 for path in first] == [0o600, 0o600]
    assert [path.stat().st_mtime_ns for path in write_secrets(place, ROOT, services, ADMIN_URL, {})] == before
    assert set(read_env_file(place / "agent.env")) == {"HATCHERY_NATS_SEED", "HATCHERY_DATABASE_URL"}


def test_authorization_has_one_user_per_service_and_the_administrator() -> None:
    text = authorization(ROOT, [service("api"), service("agent")])
    assert text.count("nkey: U") == 3
    assert "SU" not in text
