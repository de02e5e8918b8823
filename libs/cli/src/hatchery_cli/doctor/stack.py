"""Checks of a running stack: its parts, its services, its schemas and roles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import asyncpg
from hatchery_common.errors import HatcheryError
from hatchery_common.service import Service

from hatchery_cli.doctor.bus import check_bus
from hatchery_cli.doctor.findings import Finding, error, ok, warning
from hatchery_cli.embedded.layout import Choices, Ports
from hatchery_cli.embedded.probe import readiness
from hatchery_cli.preparing import schema_versions
from hatchery_cli.rendering import role_url
from hatchery_cli.target import Target

_MANY_RESTARTS = 3


async def check_stack(target: Target, services: Sequence[Service], parts: Mapping[str, Any]) -> list[Finding]:
    """Everything about the running stack."""
    found = check_parts(parts)
    found += await check_services(target.choices)
    found += await check_database(target, services)
    return found + await check_bus(target.nats_url, target.root_key, services)


def check_parts(parts: Mapping[str, Any]) -> list[Finding]:
    """What the supervisor knows."""
    found: list[Finding] = []
    for name, part in parts.items():
        if part["state"] != "ready":
            found.append(
                error("part_down", f"{name} is {part['state']}: {part['reason']}", "see `hatchery status` and its log")
            )
        elif part["restarts"] >= _MANY_RESTARTS:
            text = f"{name} was restarted {part['restarts']} times, last because it {part['reason']}"
            found.append(warning("part_restarts", text, "see its log in the data directory"))
        else:
            found.append(ok("part", f"{name} is ready"))
    return found


async def check_services(choices: Choices) -> list[Finding]:
    """What each service says about itself."""
    found: list[Finding] = []
    for name, answer in (await readiness(Ports(choices.port))).items():
        if answer.get("ok"):
            found.append(ok("service", f"{name} is ready"))
        else:
            problems = "; ".join(str(one) for one in answer.get("problems", []))
            remedy = f"see `hatchery status` and logs/{choices.part_of(name)}.log in the data directory"
            found.append(error("service_not_ready", f"{name}: {problems}", remedy))
    return found


async def check_database(target: Target, services: Sequence[Service]) -> list[Finding]:
    """Schema versions, and that no role reads another's schema."""
    try:
        versions = await schema_versions(target.root_key, services, target.database_url)
    except HatcheryError as problem:
        return [error("database_unreachable", problem.message, "is Postgres running? see `hatchery status`")]
    except asyncpg.PostgresError as problem:
        return [error("database_refuses", f"Postgres refuses a service's role: {problem}", "run `hatchery db migrate`")]
    found: list[Finding] = []
    for one in versions:
        if one.is_current:
            found.append(ok("schema", f"schema {one.schema} is at {one.current}"))
        else:
            text = f"schema {one.schema} is at {one.current}, this code wants {one.wanted}"
            found.append(error("schema_old", text, "run `hatchery db migrate`"))
    return [*found, await _check_walls(target, [one.schema for one in versions])]


async def _check_walls(target: Target, schemas: Sequence[str]) -> Finding:
    open_walls: list[str] = []
    for mine, other in zip(schemas, [*schemas[1:], *schemas[:1]], strict=True):
        if mine == other:
            continue
        connection = await asyncpg.connect(role_url(target.root_key, mine, target.database_url), timeout=5)
        try:
            if await connection.fetchval("SELECT has_schema_privilege($1, 'USAGE')", other):
                open_walls.append(f"hatchery_{mine} may read {other}")
        finally:
            await connection.close(timeout=5)
    if open_walls:
        return error("schema_open", ", ".join(open_walls), "revoke it: REVOKE ALL ON SCHEMA … FROM …")
    return ok("schema_walls", "each role reaches its own schema only")
