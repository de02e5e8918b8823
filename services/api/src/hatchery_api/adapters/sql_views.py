"""The read models of instances and runs in Postgres."""

from __future__ import annotations

from dataclasses import asdict

import sqlalchemy as sa
from hatchery_common.contracts.instances import InstanceState
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from hatchery_api.adapters import tables as t
from hatchery_api.ports import Run


class SqlInstances:
    """Implements Instances; the version guard is in the statement."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def find(self, instance_id: str) -> InstanceState | None:
        query = sa.select(t.instances.c.state).where(t.instances.c.instance_id == instance_id)
        state = await self._connection.scalar(query)
        return InstanceState.model_validate(state) if state is not None else None

    async def put(self, state: InstanceState) -> bool:
        row = insert(t.instances).values(
            instance_id=state.instance_id,
            tenant=state.tenant,
            version=state.version,
            state=state.model_dump(mode="json"),
        )
        row = row.on_conflict_do_update(
            index_elements=["instance_id"],
            set_={"version": row.excluded.version, "state": row.excluded.state},
            where=t.instances.c.version < row.excluded.version,
        )
        return (await self._connection.execute(row.returning(t.instances.c.version))).first() is not None


class SqlRuns:
    """Implements Runs; a run's first row keeps its time of creation, an ended one its end."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def find(self, tenant: str, run_id: str) -> Run | None:
        query = sa.select(t.runs).where(t.runs.c.run_id == run_id, t.runs.c.tenant == tenant)
        row = (await self._connection.execute(query)).mappings().first()
        return Run(**row) if row else None

    async def put(self, run: Run) -> None:
        row = insert(t.runs).values(asdict(run))
        row = row.on_conflict_do_update(
            index_elements=["run_id"],
            set_={name: row.excluded[name] for name in ("status", "attempt", "updated_ms", "code")},
            where=t.runs.c.status.not_in(("finished", "failed")) & (row.excluded.status != "queued"),
        )
        await self._connection.execute(row)
