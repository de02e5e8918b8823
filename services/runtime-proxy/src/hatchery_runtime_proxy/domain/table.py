"""The table of routes: a projection of the routes bucket, in memory."""

from __future__ import annotations

from collections.abc import Iterable

from hatchery_common.contracts.routes import Route, RouteState
from hatchery_common.errors import HatcheryError, NotFound, Retry

_OPEN = (RouteState.STARTING, RouteState.RUNNING)


class UnknownInstance(NotFound):
    """This tenant has no such instance."""

    code = "instance_unknown"


class InstanceNotRunning(HatcheryError):
    """The instance's route is not open; `context["state"]` says in which state it is."""

    code = "instance_not_running"
    retry = Retry.DEPENDENCY


class RouteTable:
    """Routes by instance; a lower route_version never replaces a higher one."""

    def __init__(self) -> None:
        self._routes: dict[str, Route] = {}
        self._heard: dict[str, int] = {}
        self._count = 0
        self.refreshed_at: float | None = None

    def __len__(self) -> int:
        return len(self._routes)

    def apply(self, route: Route) -> bool:
        """Takes a put; False when the table already holds it or something newer."""
        self._count += 1
        self._heard[route.instance_id] = self._count
        held = self._routes.get(route.instance_id)
        if held is not None and held.route_version >= route.route_version:
            return False
        self._routes[route.instance_id] = route
        return True

    def mark(self) -> int:
        """A moment, to be taken before a snapshot is read."""
        return self._count

    def refresh(self, routes: Iterable[Route], mark: int, now: float) -> list[Route]:
        """Takes a snapshot; what it lacks is forgotten unless it was heard of after the mark. Returns what no longer holds."""
        before, present = dict(self._routes), set[str]()
        for route in routes:
            present.add(route.instance_id)
            self.apply(route)
        for instance_id in [name for name in self._routes if name not in present and self._heard[name] <= mark]:
            del self._routes[instance_id]
        self.refreshed_at = now
        return [held for name, held in before.items() if self._routes.get(name) is not held]

    def of_instance(self, instance_id: str) -> Route | None:
        """The route of an instance, of any tenant."""
        return self._routes.get(instance_id)

    def of_machine(self, machine_id: str) -> Route | None:
        """The route that shows this machine starting or running: what makes its model token valid."""
        for route in self._routes.values():
            if route.machine_id == machine_id and route.state in _OPEN:
                return route
        return None

    def find(self, tenant: str, instance_id: str | None = None) -> Route:
        """A tenant's instance: the named one, else `default`, else its oldest; raises UnknownInstance."""
        if instance_id is not None:
            route = self._routes.get(instance_id)
            if route is None or route.tenant != tenant:
                raise UnknownInstance("you have no such instance")
            if route.state is RouteState.GONE:  # who waits for a route to appear learns that it never will
                raise UnknownInstance("you have no such instance: it was deleted", state="deleted")
            return route
        own = [r for r in self._routes.values() if r.tenant == tenant and r.state is not RouteState.GONE]
        if not own:
            raise UnknownInstance("you have no instance", hint="provision one first")
        return min(own, key=lambda route: (route.name != "default", route.instance_id))
