"""The people of the acceptance tests."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from visitor import Turn, Visitor
from whole_stack import WholeStack

SITE = "https://site.example"


@dataclass(frozen=True)
class Person:
    """A user with a running instance who has chatted once."""

    user: str
    site: Visitor
    runtime: Visitor
    instance: dict[str, Any]
    thread: dict[str, Any]
    turn: Turn

    def said_in(self, session_key: str) -> list[str]:
        """What the person said in this session of the own gateway."""
        history = self.site.get(f"/api/openclaw/sessions/{session_key}/history")["messages"]
        return [message["text"] for message in history if message["role"] == "user"]

    @property
    def tenant(self) -> str:
        return str(self.site.get("/api/me")["tenant"])


def new_user() -> str:
    return f"user-{uuid.uuid4().hex[:12]}@example.com"


def settle(stack: WholeStack, user: str) -> Person:
    """A person whose instance is ready and has answered once."""
    site = stack.visitor(user)
    site.wish("provision")
    thread = site.thread(title="first", client_key="first")
    turn = site.say(thread["thread_id"], "good morning")
    return Person(user, site, stack.runtime(user), site.instance(), thread, turn)
