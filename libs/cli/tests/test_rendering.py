"""Secrets files: each service gets its own keys and nobody else's."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from hatchery_cli.rendering import authorization, role_url, service_secrets, write_secrets
from hatchery_common.secrets import derive, public_key
from hatchery_common.service import Parts, Service, ServiceContext
from hatchery_common.settings import read_env_file

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
