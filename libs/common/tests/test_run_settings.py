"""The runner and settings: what is missing ends it before anything begins, and is named; a running service waits."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hatchery_common.errors import DependencyUnavailable, HatcheryError, SettingsWrong
from hatchery_common.health import Health
from hatchery_common.run import ORDER, run_services
from hatchery_common.service import Parts, Service, ServiceContext
from hatchery_common.settings import Settings, key, service_environment
from hatchery_common.testing.example import service as example
from hatchery_common.testing.nats import NatsServer
from hatchery_common.testing.ports import free_port
from pydantic import Field
from pydantic_settings import SettingsConfigDict

NOWHERE = {"HATCHERY_NATS_URL": "nats://127.0.0.1:1"}  # no server is asked before the settings are known to be right
DATABASE = {"HATCHERY_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"}


class Wanted(Settings):
    """Two settings that somebody must give."""

    model_config = SettingsConfigDict(env_prefix="HATCHERY_WANTED_")

    secret: str = Field(min_length=8, repr=False, description="a secret")
    number: int = Field(description="a number")


@asynccontextmanager
async def keyed(context: ServiceContext) -> AsyncGenerator[Parts]:
    key(context.environment, "model-token")
    yield Parts()


wanting = Service(name="wanting", open=keyed, settings=(Wanted,))


async def run(*services: Service, environment: dict[str, str]) -> list[str]:
    """Run to the end, which must come by itself; returns the phases that were seen."""
    phases: list[str] = []
    given = {"HATCHERY_HEALTH_BASE_PORT": str(free_port(span=len(ORDER) + 1)), **environment}
    async with asyncio.timeout(10):
        try:
            await run_services(services, given, on_change=lambda health: phases.append(health.phase))
        except SettingsWrong as error:
            error.add_note(" ".join(phases))
            raise
    return phases


async def test_every_missing_setting_of_every_service_is_named_before_anything_begins() -> None:
    with pytest.raises(SettingsWrong) as missing:
        await run(example, wanting, environment=NOWHERE)
    for variable in ("HATCHERY_DATABASE_URL", "HATCHERY_WANTED_SECRET", "HATCHERY_WANTED_NUMBER"):
        assert variable in missing.value.message
    assert missing.value.hint
    assert missing.value.__notes__ == [""], "no phase was ever entered"


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"HATCHERY_HEALTH_BASE_PORT": "high"}, "HATCHERY_HEALTH_BASE_PORT"),
        ({"HATCHERY_DATABASE_POOL_SIZE": "none"}, "HATCHERY_DATABASE_POOL_SIZE"),
        ({"HATCHERY_SECRETS_DIR": "/nonexistent"}, "/nonexistent/example.env does not exist"),
    ],
)
async def test_a_wrong_setting_is_named_without_its_value(wrong: dict[str, str], named: str) -> None:
    with pytest.raises(SettingsWrong, match=named):
        await run(example, environment=NOWHERE | DATABASE | wrong)


async def test_a_secrets_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "example.env").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsWrong, match=r"example\.env cannot be read"):
        await run(example, environment=NOWHERE | DATABASE | {"HATCHERY_SECRETS_DIR": str(tmp_path)})


@pytest.mark.parametrize(
    ("trouble", "kind"),
    [(PermissionError(13, "denied"), SettingsWrong), (OSError(24, "too many open files"), DependencyUnavailable)],
)
def test_only_what_will_not_pass_is_a_wrong_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: OSError, kind: type[HatcheryError]
) -> None:
    def refuse(path: Path) -> dict[str, str]:
        del path
        raise trouble

    monkeypatch.setattr("hatchery_common.settings.read_env_file", refuse)
    with pytest.raises(HatcheryError, match=r"example\.env cannot be read") as seen:
        service_environment("example", {"HATCHERY_SECRETS_DIR": str(tmp_path)})
    assert type(seen.value) is kind


@pytest.mark.skipif(os.geteuid() == 0, reason="root may enter every directory")
def test_a_directory_that_may_not_be_entered_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0)
    with pytest.raises(SettingsWrong, match="cannot be read"):
        service_environment("example", {"HATCHERY_SECRETS_DIR": str(tmp_path)})


async def test_a_key_that_only_the_service_asks_for_ends_it_too(clean_nats: NatsServer) -> None:
    given = {"HATCHERY_WANTED_SECRET": "long enough", "HATCHERY_WANTED_NUMBER": "1"}
    with pytest.raises(SettingsWrong, match="HATCHERY_KEY_MODEL_TOKEN"):
        await run(wanting, environment={"HATCHERY_NATS_URL": clean_nats.url, **given})


class Watch:
    """The phases of one service, as they come."""

    def __init__(self) -> None:
        self._seen: asyncio.Queue[tuple[str, str]] = asyncio.Queue()

    def note(self, health: Health) -> None:
        self._seen.put_nowait((health.phase, health.reason or ""))

    async def until(self, phase: str, contains: str = "") -> None:
        async with asyncio.timeout(20):
            while True:
                found, reason = await self._seen.get()
                if found == phase and contains in reason:
                    return


def crashing(crash: asyncio.Event) -> Service:
    """A service that asks for a key and fails whenever it is told to."""

    @asynccontextmanager
    async def opened(context: ServiceContext) -> AsyncGenerator[Parts]:
        async def loop() -> None:
            await crash.wait()
            crash.clear()
            raise ValueError("a bug")

        key(context.environment, "model-token")
        yield Parts(loops=[loop])

    return Service(name="keeper", open=opened)


async def test_a_service_that_ran_waits_for_its_secrets_to_come_back(clean_nats: NatsServer, tmp_path: Path) -> None:
    secrets, crash, stop, watch = tmp_path / "keeper.env", asyncio.Event(), asyncio.Event(), Watch()
    good = f"HATCHERY_KEY_MODEL_TOKEN={'ab' * 32}\n"
    secrets.write_text(good)
    environment = {
        "HATCHERY_NATS_URL": clean_nats.url,
        "HATCHERY_SECRETS_DIR": str(tmp_path),
        "HATCHERY_HEALTH_BASE_PORT": str(free_port(span=len(ORDER) + 1)),
    }
    services = [crashing(crash)]
    running = asyncio.create_task(run_services(services, environment, stop=stop, on_change=watch.note))
    await watch.until("running")
    secrets.write_text("")
    crash.set()
    await watch.until("failed", "a bug")
    await watch.until("failed", "HATCHERY_KEY_MODEL_TOKEN")
    secrets.write_text(good)
    await watch.until("running")
    stop.set()
    await asyncio.wait_for(running, 20)
