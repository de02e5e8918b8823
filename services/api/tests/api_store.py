"""The api's store in memory."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

from hatchery_api.domain.operations import KEEP_KEYS_MS, OperationEvent
from hatchery_api.ports import Remembered


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
