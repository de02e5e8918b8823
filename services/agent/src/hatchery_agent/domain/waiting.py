"""How a run waits for its instance: parked, woken by the instance's event, with a look now and then."""

from __future__ import annotations

# A route is stopping both in a stop and in a restart: the event that follows tells which. Unknown: it has no route yet.
WAITABLE_STATES = frozenset({"stopping", "starting", "unreachable", "unknown"})
WAITING_PHASE = "waiting_for_instance"
_UNANNOUNCED = frozenset({"unreachable"})  # a broken connection: no event says that it is whole again
_SOONEST_S, _LATEST_S = 0.25, 10.0


def look_again_s(state: str, *, waited_s: float, woken_s: float | None, accepted: bool = False) -> float:
    """Seconds until the next look at an instance in this state; `woken_s` ago its event came, if one did.

    The event may come before the proxy's route: then looks follow at once, at ever longer pauses. So they do after a break that
    no event will end, such as one in the middle of a turn that was `accepted`. Otherwise the pause is long: the event ends it.
    """
    reasons = [] if woken_s is None else [woken_s]
    if accepted or state in _UNANNOUNCED:
        reasons.append(waited_s)
    return min(max(min(reasons, default=_LATEST_S), _SOONEST_S), _LATEST_S)
