"""One stack for the whole directory, the people who use it, and the record of which items of the mission were shown."""

from __future__ import annotations

import asyncio
import sys
import threading
import uuid
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from hatchery_common.testing.model_stub import ModelStub

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))
sys.path.insert(0, str(Path(__file__).parent))

from people import SITE, Person, new_user, settle
from shown import SHOWN
from visitor import Visitor
from whole_stack import WholeStack, whole_stack

_LAST = "test_mission.py"


@pytest.fixture(scope="session")
def provider() -> Generator[ModelStub]:
    """A model provider of the operator's own, in a loop of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="provider", daemon=True)
    thread.start()
    stub = ModelStub("Hello from the provider.")
    asyncio.run_coroutine_threadsafe(stub.__aenter__(), loop).result(30)
    yield stub
    asyncio.run_coroutine_threadsafe(stub.__aexit__(None, None, None), loop).result(30)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(30)
    loop.close()


@pytest.fixture(scope="session")
def stack(provider: ModelStub) -> Generator[WholeStack]:
    """The stack as an operator with a website would set it up, under the names that the website knows."""
    environment = {
        "NEXTAUTH_SECRET": f"shared-with-the-website-{uuid.uuid4().hex}{uuid.uuid4().hex}",
        "WORKER_ENV": "acceptance",
        "HATCHERY_API_ALLOWED_ORIGINS": SITE,
        "OPENAI_BASE_URL": provider.base_url,
        "OPENAI_API_KEY": f"sk-{uuid.uuid4().hex}",
    }
    with whole_stack(**environment) as made:
        made.up()
        yield made


@pytest.fixture(scope="session")
def ann(stack: WholeStack) -> Person:
    return settle(stack, new_user())


@pytest.fixture(scope="session")
def bob(stack: WholeStack) -> Person:
    return settle(stack, new_user())


@pytest.fixture
def newcomer(stack: WholeStack) -> Generator[tuple[str, Visitor]]:
    """A user who has nothing yet; what they make is deleted at the end."""
    user = new_user()
    site = stack.visitor(user)
    yield user, site
    backend = stack.caller(x_internal_api_key=stack.key("internal-api-key"))
    backend.request("POST", "/api/platform/destroy", json={"userId": user})


@pytest.fixture
def platform(stack: WholeStack) -> Visitor:
    """The website's backend with the platform key."""
    return stack.caller(x_internal_api_key=stack.key("internal-api-key"))


@pytest.fixture
def acting(stack: WholeStack) -> Callable[[str], Visitor]:
    """The website's server, acting as a user."""
    return lambda user: stack.caller(x_oa_internal_key=stack.key("oa-internal-key"), x_oa_user_id=user)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The check of the whole comes after everything that it checks."""
    items.sort(key=lambda item: item.path.name == _LAST and item.path.parent == Path(__file__).parent)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any]:
    """Keep the ids whose test has passed."""
    outcome = yield
    if call.when == "call" and outcome.get_result().passed:
        shown = item.config.stash.setdefault(SHOWN, set())
        shown.update(mark.args[0] for mark in item.iter_markers("mission"))
