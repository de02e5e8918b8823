"""Chat turns: started by an idempotency key, streamed as events, steered, aborted, and recovered after a crash.

The keys are remembered in memory only, as in the real gateway: after a restart the same key starts a new run.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hatchery_common.testing.fake_gateway.configuration import Configuration
from hatchery_common.testing.fake_gateway.provider import ProviderFailed, prompt, stream_answer
from hatchery_common.testing.fake_gateway.transcripts import Transcripts, now_ms

_PREPARING_S = 0.05  # between a turn's acknowledgement and its row in the transcript; the real one takes 0.1 to 0.6 s
Broadcast = Callable[[str, dict[str, Any]], None]
_FAILED = "This turn ended before a reply"
_INTERRUPTED = (
    "[System] Your previous turn was interrupted by a gateway restart while OpenClaw was waiting on tool/model work. "
    "The restart did not cancel the user's task. Continue from where you left off."
)


class RunFailed(Exception):
    """The key's run has failed before it had an answer."""


class RequestConflict(Exception):
    """The idempotency key was used for another message."""


@dataclass
class Run:
    """One turn of one session."""

    key: str
    session_key: str
    message: str
    text: str = ""
    usage: dict[str, Any] | None = None
    outcome: str = "in_flight"
    sequence: int = 0
    shown: bool = True
    steers: list[Run] = field(default_factory=list["Run"])
    task: asyncio.Task[None] | None = None


class Runs:
    """All turns of this process."""

    def __init__(self, configuration: Configuration, transcripts: Transcripts, broadcast: Broadcast) -> None:
        self._configuration, self._transcripts, self._broadcast = configuration, transcripts, broadcast
        self._runs: dict[str, Run] = {}
        self._active: dict[str, Run] = {}
        self._interrupted = [key for key in transcripts.names() if self._was_running(key)]

    @property
    def active(self) -> list[Run]:
        """Turns that have not ended."""
        return list(self._active.values())

    def send(self, session_key: str, message: str, key: str) -> dict[str, Any]:
        """Accepts a turn or answers for a known key; raises RequestConflict or RunFailed."""
        known = self._runs.get(key)
        if known is not None:
            if (known.session_key, known.message) != (session_key, message):
                raise RequestConflict
            return _acknowledgement(known)
        run = Run(key, session_key, message)
        self._runs[key] = run
        target = self._active.get(session_key)
        if target is not None:
            target.steers.append(run)
        else:
            self._transcripts.await_input(session_key, key, message)
            self._start(run)
        return {"runId": key, "status": "started"}

    def pending_inputs(self, session_key: str) -> dict[str, Any]:
        """Messages that were acknowledged and are not in the transcript; `interrupted` when that was before this process."""
        session = self._transcripts.session(session_key) or {}
        found: dict[str, dict[str, Any]] = session.get("pendingInputs", {})
        items = [
            {**item, "runId": key, "state": "queued" if key in self._runs else "interrupted"}
            for key, item in found.items()
        ]
        return {"items": items, "total": len(items)}

    def abort(self, session_key: str, run_id: str | None) -> list[str]:
        """Ends the session's turn; returns the ids of what was ended."""
        run = self._active.get(session_key)
        if run is None or run.task is None or run_id not in (None, run.key):
            return []
        run.outcome = "aborted"
        run.task.cancel()
        return [run.key]

    def recover(self) -> None:
        """Continues, under a new id, every turn that was running when the last process died."""
        for session_key in self._interrupted:
            self._start(Run(str(uuid.uuid4()), session_key, _INTERRUPTED), ours=False)
        self._interrupted = []

    async def collect(self, session_key: str, message: str, key: str) -> Run:
        """Runs a turn to its end and returns it (the HTTP surface)."""
        self.send(session_key, message, key)
        run = self._runs[key]
        if run.task is not None:
            await asyncio.wait([run.task])
        return run

    def _was_running(self, session_key: str) -> bool:
        running = (self._transcripts.session(session_key) or {}).get("status") == "running"
        if running:
            self._transcripts.touch(session_key, abortedLastRun=True)
        return running

    def _append_user(self, run: Run, marks: dict[str, Any]) -> None:
        key = f"{run.key}:user"
        message = {"role": "user", "content": run.message, "idempotencyKey": key}
        self._transcripts.append(run.session_key, message, {**marks, "idempotencyKey": key})

    def _start(self, run: Run, *, ours: bool = True) -> None:
        self._active[run.session_key] = run
        marks = {"senderIsOwner": True, "senderName": "owner"} if ours else {"senderIsOwner": False}
        run.task = asyncio.create_task(self._run(run, marks))

    async def _run(self, run: Run, marks: dict[str, Any]) -> None:
        try:
            await asyncio.sleep(_PREPARING_S)
            self._append_user(run, marks)
            self._transcripts.touch(run.session_key, status="running")
            for phase in ("preparing_workspace", "preparing_context", "starting_model"):
                self._chat(run, "status", phase=phase)
            await self._answer(run)
            while run.steers:
                self._take_steers(run)
                await self._answer(run, "\n\n")
            run.outcome = "ok"
            self._agent(run, "lifecycle", {"phase": "end"})
            self._chat(run, "final", stopReason="stop", message=_message(run.text))
        except ProviderFailed as error:
            run.outcome = "error"
            run.text = str(error)
            row = {"role": "custom", "customType": "run-failed-before-reply", "display": True}
            self._transcripts.append(run.session_key, {**row, "content": f"{_FAILED}: {error}"}, {"runId": run.key})
            self._chat(run, "error", errorMessage=str(error))
        except asyncio.CancelledError:
            if run.outcome == "aborted":
                self._append_user(run, marks)  # perhaps it was still preparing
                self._append_answer(run, run.text, "stop", f"{run.key}:assistant")
                self._chat(run, "aborted", stopReason="rpc", message=_message(run.text))
        finally:
            self._active.pop(run.session_key, None)
            if run.outcome != "in_flight":
                self._transcripts.touch(run.session_key, status="done")

    async def _answer(self, run: Run, glue: str = "") -> None:
        provider = self._configuration.provider
        if provider is None:
            raise ProviderFailed("No model provider is configured")
        worded = prompt(provider, run.session_key, self._transcripts.messages(run.session_key))
        text, usage = "", None
        async with contextlib.aclosing(stream_answer(provider, worded)) as chunks:
            async for chunk in chunks:
                usage = chunk.get("usage", usage)
                if piece := chunk.get("text"):
                    delta = piece if text or not run.text else glue + piece
                    text += piece
                    run.text += delta
                    self._agent(run, "assistant", {"text": run.text, "delta": delta})
                    self._chat(run, "delta", deltaText=delta, message=_message(run.text))
        run.usage = _sum(run.usage, usage)
        self._agent(run, "usage", {"outputTokens": (usage or {}).get("completion_tokens", 0)})
        self._append_answer(run, text, "stop", None, usage)

    def _take_steers(self, run: Run) -> None:
        steers, run.steers = run.steers, []
        for steer in steers:
            self._append_user(steer, {"senderIsOwner": True, "steerTargetRunId": run.key})
            steer.outcome = "ok"
            self._chat(steer, "final")

    def _append_answer(
        self, run: Run, text: str, stop_reason: str, key: str | None, usage: dict[str, Any] | None = None
    ) -> None:
        message: dict[str, Any] = {"role": "assistant", "content": [{"type": "text", "text": text}]}
        message |= {"provider": "hatchery", "model": "demo", "stopReason": stop_reason}
        marks: dict[str, Any] = {"runId": run.key}
        if key is not None:
            message["idempotencyKey"] = marks["idempotencyKey"] = key
        if usage is not None:
            counts = {"input": usage.get("prompt_tokens", 0), "output": usage.get("completion_tokens", 0)}
            message["usage"] = {**counts, "totalTokens": sum(counts.values()), "cacheRead": 0, "cacheWrite": 0}
        self._transcripts.append(run.session_key, message, marks)

    def _chat(self, run: Run, state: str, **fields: Any) -> None:
        self._broadcast("chat", {**self._place(run), "state": state, **fields})

    def _agent(self, run: Run, stream: str, data: dict[str, Any]) -> None:
        self._broadcast("agent", {**self._place(run), "stream": stream, "data": data, "ts": now_ms()})

    def _place(self, run: Run) -> dict[str, Any]:
        run.sequence += 1
        return {"runId": run.key, "sessionKey": run.session_key, "agentId": "main", "seq": run.sequence}


def _message(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": text}], "timestamp": now_ms()}


def _acknowledgement(run: Run) -> dict[str, Any]:
    if run.outcome == "aborted":
        return {"runId": run.key, "status": "timeout", "summary": "aborted", "stopReason": "rpc"}
    if run.outcome == "error":
        raise RunFailed(
            f"⚠️ Agent failed before reply: {run.text}\nTo view logs, run `openclaw logs --follow` in a terminal."
        )
    return {"runId": run.key, "status": run.outcome}


def _sum(one: dict[str, Any] | None, other: dict[str, Any] | None) -> dict[str, Any] | None:
    if one is None or other is None:
        return one or other
    return {
        name: one.get(name, 0) + other.get(name, 0) for name in ("prompt_tokens", "completion_tokens", "total_tokens")
    }
