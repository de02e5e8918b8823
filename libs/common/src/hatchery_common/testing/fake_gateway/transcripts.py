"""Sessions and their messages, kept in one JSON file below the state directory."""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path
from typing import Any


def now_ms() -> int:
    """Milliseconds since 1970."""
    return int(time.time() * 1000)


class Transcripts:
    """All sessions of this gateway; every change is on disk before it is acknowledged."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "agents" / "main" / "sessions.json"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._sessions: dict[str, dict[str, Any]] = {}
        if self._path.is_file():
            self._sessions = json.loads(self._path.read_text())

    def names(self) -> list[str]:
        """Session keys, last used first."""
        return sorted(self._sessions, key=lambda key: -int(self._sessions[key]["updatedAt"]))

    def session(self, key: str) -> dict[str, Any] | None:
        """The stored session, or None."""
        return self._sessions.get(key)

    def messages(self, key: str) -> list[dict[str, Any]]:
        """The session's messages, oldest first."""
        found = self._sessions.get(key)
        return list(found["messages"]) if found else []

    def touch(self, key: str, **fields: Any) -> dict[str, Any]:
        """The session, created when new, with these fields set."""
        session = self._sessions.setdefault(
            key, {"sessionId": str(uuid.uuid4()), "messages": [], "updatedAt": now_ms()}
        )
        session.update(fields, updatedAt=now_ms())
        self._save()
        return session

    def await_input(self, key: str, run_id: str, message: str) -> None:
        """Keeps an accepted message of a session that exists; a new session comes with its first row."""
        if key in self._sessions:
            item = {"id": str(uuid.uuid4()), "acceptedAt": now_ms(), "message": {"role": "user", "content": message}}
            self._sessions[key].setdefault("pendingInputs", {})[run_id] = item
            self._save()

    def append(self, key: str, message: dict[str, Any], marks: dict[str, Any]) -> None:
        """Adds a message; one with an idempotency key that is already there is not written twice."""
        session = self.touch(key)
        wanted = message.get("idempotencyKey")
        session.get("pendingInputs", {}).pop(str(wanted).removesuffix(":user"), None)
        if wanted and any(known.get("idempotencyKey") == wanted for known in session["messages"]):
            return
        sequence = len(session["messages"]) + 1
        marked = {"id": str(uuid.uuid4()), "recordTimestampMs": now_ms(), "seq": sequence, **marks}
        session["messages"].append({**message, "timestamp": now_ms(), "__openclaw": marked})
        self._save()

    def _save(self) -> None:
        fresh = self._path.with_suffix(".new")
        fresh.write_text(json.dumps(self._sessions))
        fresh.replace(self._path)


def listing(transcripts: Transcripts, key: str) -> dict[str, Any]:
    """One row of sessions.list and of the sessions_list tool."""
    session = transcripts.session(key) or {}
    return {
        "key": key,
        "sessionId": session.get("sessionId"),
        "agentId": "main",
        "kind": "direct",
        "channel": "unknown",
        "updatedAt": session.get("updatedAt"),
        "model": "demo",
        "contextTokens": 128000,
        "totalTokens": session.get("totalTokens", 0),
        "status": session.get("status", "done"),
        "hasActiveRun": session.get("status") == "running",
        "abortedLastRun": bool(session.get("abortedLastRun")),
    }
