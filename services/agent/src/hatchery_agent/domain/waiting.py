"""How a run waits for its instance: parked, woken by the instance's event, with a look now and then."""

from __future__ import annotations

WAITABLE_STATES = frozenset(
    {"provisioning", "starting", "restarting", "upgrading", "restoring", "unreachable", "unknown"}
)
WAITING_PHASE = "waiting_for_instance"
_UNANNOUNCED = frozenset({"unreachable"})  # a broken connection: no event says that it is whole again
_SOONEST_S, _LATEST_S = 0.25, 10.0


def look_again_s(state: str, *, waited_s: float, woken_s: float | None) -> float:
    """Seconds until the next look at an instance in this state; `woken_s` ago its event came, if one did.

    The event may come before the proxy's route: then looks follow at once, at ever longer pauses. Without an event the pause is
    long, since the event is what ends it.
    """
    if woken_s is None and state not in _UNANNOUNCED:
        return _LATEST_S
    since_s = waited_s if woken_s is None else woken_s
    return min(max(since_s, _SOONEST_S), _LATEST_S)
