"""What the server refused on one connection, for as long as it says something about the rights that hold now."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from typing import Final

# nats-py gives the server's text in lower case: `permissions violation for publish to "subject"`,
# `permissions violation for subscription to "subject" using queue "name"`
_REFUSED = re.compile(r"permissions violation for (publish|subscription) to \"([^\"]+)\"")
_PUBLISH_S: Final = (
    60.0  # a lasting one comes again at its next use; one that was cured by a reload must not stay for ever
)
_ANSWER_S: Final = 10.0  # the server also refuses an answer that comes too late: that is no missing right


class Violations:
    """Remembers refusals: publishes for a while, subscriptions (asked for once only) until they are asked for again."""

    def __init__(self, name: str, now: Callable[[], float] = time.monotonic) -> None:
        self.count = 0
        self._name = name
        self._now = now
        self._until: dict[tuple[str, str], float] = {}

    def note(self, text: str) -> bool:
        """Remember what this error of the server refuses; False when it is about something else."""
        found = _REFUSED.search(text.lower())
        if found is None:
            return False
        self.count += 1
        verb, subject = found[1], found[2]
        lasts = math.inf if verb == "subscription" else _ANSWER_S if subject.startswith("_inbox_") else _PUBLISH_S
        self._until[verb, subject] = self._now() + lasts
        return True

    def problem(self) -> str | None:
        """One sentence for what is refused now."""
        now = self._now()
        self._until = {key: until for key, until in self._until.items() if until > now}
        if not self._until:
            return None
        verb, subject = next(iter(self._until))
        return f'{self._name} may not do this on the bus: permissions violation for {verb} to "{subject}"'

    def refuses_subscription(self, subject: str) -> bool:
        """Whether listening on this subject was refused."""
        return ("subscription", subject.lower()) in self._until

    def forget_subscription(self, subject: str) -> None:
        """It is asked for again: another refusal will be noted anew."""
        self._until.pop(("subscription", subject.lower()), None)

    def forget(self) -> None:
        """The connection is gone: the next one brings refusals of its own, some before it is said to be there."""
        self._until.clear()
