"""Fakes of what the api asks: threads' logs, the agent and billing, the runtime API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from hatchery_common.bus.errors import RemoteError
from hatchery_common.contracts.billing import SummaryResponse
from hatchery_common.contracts.threads import (
    ListThreadsResponse,
    SubmitMessageResponse,
    ThreadEntry,
    ThreadEntryType,
    ThreadView,
)
from hatchery_common.ids import thread_id


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
        self.lost: Exception | None = None  # instead of the answer, after the call had its effect
        self._logs = logs

    async def call(self, rpc: Any, request: Any, *, timeout_ms: int | None = None) -> Any:
        if self.fail is not None:
            raise self.fail
        await asyncio.sleep(0.01)  # others get their turn, as with a real bus
        answer = getattr(self, f"_{rpc.method}")(request)
        if self.lost is not None:
            raise self.lost
        return answer

    def _summary(self, request: Any) -> SummaryResponse:
        return SummaryResponse(tenant=request.tenant, opened=True, balance_micro=4_990_000)

    def _create_thread(self, request: Any) -> ThreadView:
        named = thread_id(request.tenant, request.client_key)
        view = ThreadView(
            thread_id=named, instance_id=request.instance_id, title=request.title,
            session_key=request.session_key or f"agent:main:hatch:{named}", created_at_ms=1, updated_at_ms=1,
        )  # fmt: skip
        held = self.threads.setdefault(named, (request.tenant, view))[1]
        if held.instance_id == request.replaces_instance_id:
            held = held.model_copy(update={"instance_id": request.instance_id})
            self.threads[named] = (request.tenant, held)
        return held

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
        if any(one.run_id == request.run_id for one in self.submitted):
            return self._submitted(request, view, "known")
        self.submitted.append(request)
        place = (request.tenant, request.thread_id)
        data = {"message_id": request.message_id, "text": request.text}
        self._logs.add(*place, ThreadEntryType.MESSAGE_USER, request.run_id, **data)
        self._logs.add(*place, ThreadEntryType.TEXT_DELTA, request.run_id, text="hello", attempt=1)
        self._logs.add(*place, ThreadEntryType.MESSAGE_ASSISTANT, request.run_id, text="hello you", attempt=1)
        self._logs.add(*place, ThreadEntryType.RUN_FINISHED, request.run_id, duration_ms=5)
        return self._submitted(request, view, "accepted")

    def _submitted(self, request: Any, view: ThreadView, status: Any) -> SubmitMessageResponse:
        return SubmitMessageResponse(
            thread_id=request.thread_id, run_id=request.run_id, message_id=request.message_id,
            instance_id=view.instance_id, status=status,
        )  # fmt: skip


class FakeRuntime:
    """The runtime API with one session, which says too much."""

    async def sessions(self, tenant: str, instance_id: str) -> Any:
        return {"sessions": [{"key": "main", "totalTokens": 12, "gatewayToken": "tok-very-secret"}]}

    async def history(self, tenant: str, instance_id: str, session_key: str, limit: int) -> Any:
        return {"messages": [{"role": "user", "text": f"{session_key}/{limit}"}], "serviceToken": "tok-very-secret"}
