"""Queries between services: core request/reply, one queue group per service, typed errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import structlog
from pydantic import BaseModel, ValidationError

from hatchery_common.bus.connection import Connection, NoResponders
from hatchery_common.bus.envelope import next_trace
from hatchery_common.bus.errors import BusUnavailable, RemoteError
from hatchery_common.bus.listening import Listening, Raw
from hatchery_common.contracts.base import Rpc
from hatchery_common.errors import HatcheryError
from hatchery_common.guard import guarded

log = structlog.get_logger("hatchery.bus")
ERROR_HEADER = "Hatchery-Error"
Answer = Callable[[Any], Awaitable[Any]]
Q = TypeVar("Q", bound=BaseModel)
R = TypeVar("R", bound=BaseModel)


async def call(connection: Connection, rpc: Rpc[Q, R], request: Q, *, source: str, timeout_ms: int | None = None) -> R:
    """Ask; raises RemoteError when the other service refuses, BusUnavailable when it does not answer in time."""
    timeout_s = (timeout_ms or rpc.timeout_ms) / 1000
    headers = {"ce-source": source, "traceparent": next_trace(None)}
    try:
        answer = await connection.request(
            rpc.subject, request.model_dump_json().encode(), headers=headers, timeout_s=timeout_s
        )
    except NoResponders as error:
        raise BusUnavailable(f"{rpc.service} is not there to answer {rpc.method}", hint="is it running?") from error
    code = (answer.headers or {}).get(ERROR_HEADER)
    if code is not None:
        refusal: dict[str, Any] = json.loads(answer.data)
        raise RemoteError(code, str(refusal.get("message", code)), hint=refusal.get("hint"))
    try:
        return rpc.response.model_validate_json(answer.data)
    except ValidationError as error:
        raise RemoteError("bad_response", f"{rpc.subject} answered with something else") from error


class RpcServer:
    """Answers the rpcs of one service, so many at a time; further requests wait on the wire."""

    def __init__(self, connection: Connection, service: str, *, concurrency: int = 64) -> None:
        self._connection = connection
        self._service = service
        self._slots = asyncio.Semaphore(concurrency)
        self._listening: list[Listening] = []
        self._running: set[asyncio.Task[None]] = set()

    async def serve(self, rpc: Rpc[Any, Any], handler: Answer) -> None:
        """Begin to answer this rpc."""
        receive = self._receiver(rpc, handler)
        self._listening.append(await self._connection.subscribe(rpc.subject, receive, queue=self._service))

    async def stop(self, deadline_s: float) -> None:
        """Take no more requests, answer those already taken."""
        for listening in self._listening:
            await self._connection.unsubscribe(listening, drain=self._connection.connected)
        self._listening.clear()
        if self._running:
            _, late = await asyncio.wait(self._running, timeout=deadline_s)
            for task in late:
                task.cancel()

    def _receiver(self, rpc: Rpc[Any, Any], handler: Answer) -> Any:
        async def receive(raw: Raw) -> None:
            session = self._connection.session
            await self._slots.acquire()
            task = asyncio.get_running_loop().create_task(self._answer(rpc, handler, raw, session))
            self._running.add(task)
            task.add_done_callback(self._done)

        return receive

    def _done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._slots.release()

    async def _answer(self, rpc: Rpc[Any, Any], handler: Answer, raw: Raw, session: int) -> None:
        try:
            request = rpc.request.model_validate_json(raw.data)
            response = await guarded(handler(request), raw.subject)
            await self._connection.answer(raw.reply, response.model_dump_json().encode(), session=session)
        except ValidationError as error:
            faults = f"not a request of {raw.subject}: {error.error_count()} faults"
            await self._refuse(raw, session, "invalid_input", faults)
        except HatcheryError as error:
            await self._refuse(raw, session, error.code, error.message, error.hint)
        except Exception:
            log.exception("bus.rpc_failed", subject=raw.subject)
            await self._refuse(raw, session, "internal", f"{raw.subject} failed")

    async def _refuse(self, raw: Raw, session: int, code: str, message: str, hint: str | None = None) -> None:
        body = json.dumps({"code": code, "message": message, "hint": hint}).encode()
        try:
            await self._connection.answer(raw.reply, body, session=session, headers={ERROR_HEADER: code})
        except BusUnavailable:
            log.debug("bus.rpc_answer_not_sent", subject=raw.subject)
