"""Users, claims and idempotency keys in Postgres."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from hatchery_api.adapters import tables as t
from hatchery_api.domain.identity import User
from hatchery_api.domain.instances import Claim
from hatchery_api.domain.operations import KEEP_KEYS_MS
from hatchery_api.ports import Remembered, RequestKey


class SqlUsers:
    """Implements Users."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def find(self, user_id: str) -> User | None:
        query = sa.select(t.users).where(t.users.c.user_id == user_id)
        row = (await self._connection.execute(query)).mappings().first()
        return User(**row) if row else None

    async def add(self, user: User) -> bool:
        row = insert(t.users).values(asdict(user)).on_conflict_do_nothing().returning(t.users.c.user_id)
        return (await self._connection.execute(row)).first() is not None

    async def adopt_pepper(self, user_id: str, pepper: str) -> None:
        first = sa.update(t.users).where(t.users.c.user_id == user_id, t.users.c.pepper.is_(None))
        await self._connection.execute(first.values(pepper=pepper))

    async def set_pepper(self, user_id: str, pepper: str) -> None:
        known = sa.update(t.users).where(t.users.c.user_id == user_id)
        await self._connection.execute(known.values(pepper=pepper))


class SqlClaims:
    """Implements Claims; the row's lock is what makes 20 requests one."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def find(self, tenant: str, name: str) -> Claim | None:
        return await self._one(_claim(tenant, name))

    async def lock(self, tenant: str, name: str) -> Claim | None:
        return await self._one(_claim(tenant, name).with_for_update())

    async def all_of(self, tenant: str) -> Sequence[Claim]:
        query = sa.select(t.claims).where(t.claims.c.tenant == tenant).order_by(t.claims.c.created_ms, t.claims.c.name)
        return [Claim(**row) for row in (await self._connection.execute(query)).mappings()]

    async def add(self, claim: Claim) -> bool:
        row = insert(t.claims).values(asdict(claim)).on_conflict_do_nothing().returning(t.claims.c.name)
        return (await self._connection.execute(row)).first() is not None

    async def save(self, claim: Claim) -> None:
        held = sa.update(t.claims).where(t.claims.c.tenant == claim.tenant, t.claims.c.name == claim.name)
        await self._connection.execute(held.values(generation=claim.generation, deleting=claim.deleting))

    async def release(self, instance_id: str) -> None:
        await self._connection.execute(sa.delete(t.claims).where(t.claims.c.instance_id == instance_id))

    async def _one(self, query: sa.Select[Any]) -> Claim | None:
        row = (await self._connection.execute(query)).mappings().first()
        return Claim(**row) if row else None


def _claim(tenant: str, name: str) -> sa.Select[Any]:
    return sa.select(t.claims).where(t.claims.c.tenant == tenant, t.claims.c.name == name)


class SqlKeys:
    """Implements Keys; a key older than 30 days may be taken anew."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def find(self, key: RequestKey) -> Remembered | None:
        query = sa.select(t.keys.c.body_hash, t.keys.c.refs).where(*_is(key))
        row = (await self._connection.execute(query)).first()
        return Remembered(row.body_hash, row.refs) if row else None

    async def take(self, key: RequestKey, now_ms: int) -> Remembered | None:
        row = insert(t.keys).values(**asdict(key), refs=None, created_ms=now_ms)
        row = row.on_conflict_do_update(
            index_elements=["tenant", "route", "key"],
            set_={"body_hash": row.excluded.body_hash, "refs": sa.null(), "created_ms": row.excluded.created_ms},
            where=t.keys.c.created_ms < now_ms - KEEP_KEYS_MS,
        )
        taken = (await self._connection.execute(row.returning(t.keys.c.key))).first()
        return None if taken else await self.find(key)

    async def settle(self, key: RequestKey, refs: dict[str, str | None]) -> None:
        await self._connection.execute(sa.update(t.keys).where(*_is(key)).values(refs=refs))

    async def forget(self, before_ms: int) -> int:
        result: Any = await self._connection.execute(sa.delete(t.keys).where(t.keys.c.created_ms < before_ms))
        return int(result.rowcount)


def _is(key: RequestKey) -> tuple[Any, ...]:
    return (t.keys.c.tenant == key.tenant, t.keys.c.route == key.route, t.keys.c.key == key.key)
