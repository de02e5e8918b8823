"""Fakes over the api's ports, and an application around them."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import httpx
import jwt
import pytest
import structlog
from hatchery_api.adapters.changes import ProcessChanges
from hatchery_api.adapters.tokens import WebsiteTokens
from hatchery_api.domain.operations import KEEP_KEYS_MS, OperationEvent
from hatchery_api.ports import Remembered
from hatchery_api.routes import Door, build_app
from hatchery_api.settings import ApiSettings
from hatchery_common.bus.errors import RemoteError
from hatchery_common.clock import FixedClock
from hatchery_common.contracts.billing import SummaryResponse
from hatchery_common.contracts.threads import (
    ListThreadsResponse,
    SubmitMessageResponse,
    ThreadEntry,
    ThreadEntryType,
    ThreadView,
)
from hatchery_common.ids import thread_id

SECRET = "w" * 64
NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
OA_KEY = "oa-internal-key-0123456789"
PLATFORM_KEY = "platform-key-0123456789"


class MemoryStore:
    """The store in memory: one transaction at a time, rolled back when it raises."""

    def __init__(self) -> None:
        self.data: dict[str, Any] = {
            name: {} for name in ("users", "claims", "operations", "events", "keys", "instances", "runs", "inbox")
        }
        self.sent: list[tuple[str, Any]] = []
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def read(self) -> AsyncGenerator[Any]:
        yield _Reads(self)

    @asynccontextmanager
    async def begin(self, cause: Any = None, *, epoch: int | None = None) -> AsyncGenerator[Any]:
        async with self._lock:
            before, sent = copy.deepcopy(self.data), len(self.sent)
            try:
                yield _Work(self, cause)
            except BaseException:
                self.data = before
                del self.sent[sent:]
                raise


class _Reads:
    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.users = SimpleNamespace(
            find=self._find_user, add=self._add_user, adopt_pepper=self._adopt, set_pepper=self._adopt
        )
        self.claims = SimpleNamespace(
            find=self._find_claim, lock=self._find_claim, add=self._add_claim, save=self._save_claim,
            release=self._release, all_of=self._claims_of,
        )  # fmt: skip
        self.operations = SimpleNamespace(
            find=self._find_op, newest=self._newest, lock=self._lock_op, add=self._save_op, save=self._save_op,
            note=self._note, events=self._events, last_event=self._last, due=self._due,
        )  # fmt: skip
        self.keys = SimpleNamespace(find=self._find_key, take=self._take, settle=self._settle, forget=self._forget)
        self.instances = SimpleNamespace(find=self._find_instance, put=self._put_instance)
        self.runs = SimpleNamespace(find=self._find_run, put=self._put_run)

    @property
    def data(self) -> dict[str, Any]:
        return self.store.data

    async def _find_user(self, user_id):
        return self.data["users"].get(user_id)

    async def _add_user(self, user):
        return self.data["users"].setdefault(user.user_id, user) is user

    async def _adopt(self, user_id, pepper):
        self.data["users"][user_id] = replace(self.data["users"][user_id], pepper=pepper)

    async def _find_claim(self, tenant, name):
        return self.data["claims"].get((tenant, name))

    async def _add_claim(self, claim):
        return self.data["claims"].setdefault((claim.tenant, claim.name), claim) is claim

    async def _save_claim(self, claim):
        self.data["claims"][claim.tenant, claim.name] = claim

    async def _release(self, instance_id):
        held = {key: claim for key, claim in self.data["claims"].items() if claim.instance_id != instance_id}
        self.data["claims"] = held

    async def _claims_of(self, tenant):
        return [claim for claim in self.data["claims"].values() if claim.tenant == tenant]

    async def _find_op(self, tenant, operation_id):
        found = self.data["operations"].get(operation_id)
        return found if found and found.tenant == tenant else None

    async def _newest(self, instance_id):
        ours = [one for one in self.data["operations"].values() if one.instance_id == instance_id]
        return max(ours, key=lambda one: one.generation, default=None)

    async def _lock_op(self, operation_id):
        return self.data["operations"].get(operation_id)

    async def _save_op(self, operation):
        self.data["operations"][operation.operation_id] = operation

    async def _note(self, operation_id, kind, at_ms, data):
        events = self.data["events"].setdefault(operation_id, [])
        events.append(OperationEvent(len(events) + 1, kind, at_ms, data))
        return len(events)

    async def _events(self, operation_id, after, limit):
        return self.data["events"].get(operation_id, [])[after : after + limit]

    async def _last(self, operation_id):
        return len(self.data["events"].get(operation_id, []))

    async def _due(self, now_ms, limit):
        late = [
            one
            for one in self.data["operations"].values()
            if one.is_open and one.overdue_ms is None and one.deadline_ms < now_ms
        ]
        return late[:limit]

    async def _find_key(self, key):
        held = self.data["keys"].get((key.tenant, key.route, key.key))
        return Remembered(held["body_hash"], held["refs"]) if held else None

    async def _take(self, key, now_ms):
        place = (key.tenant, key.route, key.key)
        held = self.data["keys"].get(place)
        if held and held["created_ms"] >= now_ms - KEEP_KEYS_MS:
            return Remembered(held["body_hash"], held["refs"])
        self.data["keys"][place] = {**asdict(key), "refs": None, "created_ms": now_ms}
        return None

    async def _settle(self, key, refs):
        self.data["keys"][key.tenant, key.route, key.key]["refs"] = refs

    async def _forget(self, before_ms):
        old = [place for place, held in self.data["keys"].items() if held["created_ms"] < before_ms]
        for place in old:
            del self.data["keys"][place]
        return len(old)

    async def _find_instance(self, instance_id):
        return self.data["instances"].get(instance_id)

    async def _put_instance(self, state):
        held = self.data["instances"].get(state.instance_id)
        if held and held.version >= state.version:
            return False
        self.data["instances"][state.instance_id] = state
        return True

    async def _find_run(self, tenant, run_id):
        found = self.data["runs"].get(run_id)
        return found if found and found.tenant == tenant else None

    async def _put_run(self, run):
        held = self.data["runs"].get(run.run_id)
        if held is None:
            self.data["runs"][run.run_id] = run
        elif held.status not in {"finished", "failed"} and run.status != "queued":
            self.data["runs"][run.run_id] = replace(run, created_ms=held.created_ms)


class _Work(_Reads):
    def __init__(self, store: MemoryStore, cause: Any) -> None:
        super().__init__(store)
        self._cause = cause

    async def first_delivery(self) -> bool:
        return self.data["inbox"].setdefault(self._cause.id, self._cause) is self._cause

    async def emit(self, message: Any, *, id: str | None = None) -> str:  # noqa: A002
        self.store.sent.append((id or "evt", message))
        return id or "evt"


@dataclass(frozen=True)
class LogLine:
    sequence: int
    entry: ThreadEntry


class FakeLogs:
    """Thread logs in memory; `follow` ends at the log's end, so that tests end too."""

    def __init__(self) -> None:
        self.lines: dict[tuple[str, str], list[LogLine]] = {}
        self.sequence = 100

    def add(self, tenant: str, thread: str, kind: ThreadEntryType, run_id: str | None = None, **data: Any) -> int:
        self.sequence += 3
        entry = ThreadEntry(
            id=f"ent_{self.sequence}", type=kind, thread_id=thread, at_ms=1, run_id=run_id,
            attempt=data.pop("attempt", None), data=data,
        )  # fmt: skip
        self.lines.setdefault((tenant, thread), []).append(LogLine(self.sequence, entry))
        return self.sequence

    async def read(self, tenant: str, thread_id: str, after: int = 0) -> AsyncIterator[LogLine]:
        for line in self.lines.get((tenant, thread_id), []):
            if line.sequence > after:
                yield line

    async def follow(self, tenant: str, thread_id: str, after: int = 0) -> AsyncIterator[LogLine | None]:
        async for line in self.read(tenant, thread_id, after):
            yield line
        yield None

    async def bounds(self, tenant: str, thread_id: str) -> tuple[int, int]:
        lines = self.lines.get((tenant, thread_id), [])
        return (lines[0].sequence, lines[-1].sequence) if lines else (0, 0)


class FakeCalls:
    """The agent and billing, as far as the api asks them; a submitted message is answered at once in the log."""

    def __init__(self, logs: FakeLogs) -> None:
        self.threads: dict[str, tuple[str, ThreadView]] = {}
        self.submitted: list[Any] = []
        self.fail: Exception | None = None
        self._logs = logs

    async def call(self, rpc: Any, request: Any, *, timeout_ms: int | None = None) -> Any:
        if self.fail is not None:
            raise self.fail
        return getattr(self, f"_{rpc.method}")(request)

    def _summary(self, request: Any) -> SummaryResponse:
        return SummaryResponse(tenant=request.tenant, opened=True, balance_micro=4_990_000)

    def _create_thread(self, request: Any) -> ThreadView:
        named = thread_id(request.tenant, request.client_key)
        view = ThreadView(
            thread_id=named, instance_id=request.instance_id, title=request.title,
            session_key=f"agent:main:{named}", created_at_ms=1, updated_at_ms=1,
        )  # fmt: skip
        return self.threads.setdefault(named, (request.tenant, view))[1]

    def _get_thread(self, request: Any) -> ThreadView:
        tenant, view = self.threads.get(request.thread_id, ("", None))
        if tenant != request.tenant or view is None:
            raise RemoteError("not_found", "there is no such thread")
        return view

    def _list_threads(self, request: Any) -> ListThreadsResponse:
        ours = tuple(view for tenant, view in self.threads.values() if tenant == request.tenant)
        return ListThreadsResponse(threads=ours[: request.limit])

    def _submit_message(self, request: Any) -> SubmitMessageResponse:
        view = self._get_thread(request)
        self.submitted.append(request)
        place = (request.tenant, request.thread_id)
        data = {"message_id": request.message_id, "text": request.text}
        self._logs.add(*place, ThreadEntryType.MESSAGE_USER, request.run_id, **data)
        self._logs.add(*place, ThreadEntryType.TEXT_DELTA, request.run_id, text="hello", attempt=1)
        self._logs.add(*place, ThreadEntryType.MESSAGE_ASSISTANT, request.run_id, text="hello you", attempt=1)
        self._logs.add(*place, ThreadEntryType.RUN_FINISHED, request.run_id, duration_ms=5)
        return SubmitMessageResponse(
            thread_id=request.thread_id, run_id=request.run_id, message_id=request.message_id,
            instance_id=view.instance_id,
        )  # fmt: skip


class FakeRuntime:
    """The runtime API with one session, which says too much."""

    async def sessions(self, tenant: str, instance_id: str) -> Any:
        return {"sessions": [{"key": "main", "totalTokens": 12, "gatewayToken": "tok-very-secret"}]}

    async def history(self, tenant: str, instance_id: str, session_key: str, limit: int) -> Any:
        return {"messages": [{"role": "user", "text": f"{session_key}/{limit}"}], "serviceToken": "tok-very-secret"}


@dataclass
class World:
    """Everything a test can touch."""

    door: Door
    store: MemoryStore
    calls: FakeCalls
    logs: FakeLogs
    app: Any
    client: httpx.AsyncClient

    def bearer(self, user: str = "ada", **changes: Any) -> dict[str, str]:
        return {"Authorization": f"Bearer {token(user, **changes)}"}


def token(user: str = "ada", *, secret: str = SECRET, algorithm: str = "HS256", drop: str = "", **changes: Any) -> str:
    now = int(datetime.now(UTC).timestamp())
    claims = {"sub": user, "iss": "hatchery", "aud": "hatchery", "exp": now + 600, "iat": now, **changes}
    claims.pop(drop, None)
    return jwt.encode(claims, None if algorithm == "none" else secret, algorithm=algorithm)


def settings(**changes: Any) -> ApiSettings:
    given = {
        "website_jwt_secret": SECRET,
        "internal_api_key": PLATFORM_KEY,
        "oa_internal_key": OA_KEY,
        "runtime_service_key": "ab" * 32,
        "public_url": "http://test",
    }
    return ApiSettings(**{**given, **changes})


def build_door(chosen: ApiSettings, store: Any, logs: FakeLogs, calls: FakeCalls) -> Door:
    secrets = [one for one in (chosen.website_jwt_secret, chosen.website_jwt_secret_previous) if one]
    return Door(
        settings=chosen,
        store=store,
        calls=calls,
        logs=logs,
        runtime=FakeRuntime(),
        tokens=WebsiteTokens(
            secrets, issuer=chosen.jwt_issuer, audience=chosen.jwt_audience, environment=chosen.jwt_environment
        ),
        changes=ProcessChanges(),
        clock=FixedClock(NOW),
        log=structlog.wrap_logger(structlog.ReturnLogger(), processors=[structlog.processors.JSONRenderer()]),
    )


@asynccontextmanager
async def opened(store: Any = None, **changes: Any) -> AsyncGenerator[World]:
    logs = FakeLogs()
    calls = FakeCalls(logs)
    store = store or MemoryStore()
    door = build_door(settings(**changes), store, logs, calls)
    app = build_app(door)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield World(door, store, calls, logs, app, client)


@pytest.fixture
async def world() -> AsyncGenerator[World]:
    """The api over fakes, open to everyone with a token."""
    async with opened() as made:
        yield made


@pytest.fixture
def open_world() -> Callable[..., Any]:
    """Opens an api with other settings, or on another store."""
    return opened


@pytest.fixture
def make_token() -> Callable[..., str]:
    """Signs website tokens, right or wrong ones."""
    return token


@pytest.fixture
def make_settings() -> Callable[..., ApiSettings]:
    """Settings with every required value."""
    return settings


@pytest.fixture
def app() -> Any:
    """The application over fakes, for tests without a loop."""
    logs = FakeLogs()
    return build_app(build_door(settings(), MemoryStore(), logs, FakeCalls(logs)))
