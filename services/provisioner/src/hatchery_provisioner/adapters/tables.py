"""The provisioner's tables, with a metadata of their own."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from hatchery_common.database import common_tables
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import registry
from sqlmodel import Field, SQLModel

_Big = sa.BigInteger


class _Base(SQLModel, registry=registry()):
    """Root of this service's tables."""


class InstanceRow(_Base, table=True):
    """One instance: desired and observed state. Deleted ones stay as tombstones that fence late wishes.

    With `fence` it is none yet: a stop came before the provision that it stops.
    """

    __tablename__ = "instances"  # pyright: ignore[reportAssignmentType]
    __table_args__ = (sa.Index("instances_pending", "next_at_ms", postgresql_where=sa.text("next_at_ms IS NOT NULL")),)

    instance_id: str = Field(primary_key=True)
    tenant: str = Field(index=True)
    name: str
    size: str
    driver: str
    desired: str
    stopped_by: str | None = None
    status: str
    generation: int = Field(sa_type=_Big)
    version: int = Field(sa_type=_Big)
    operation_id: str | None = None
    operation_verb: str | None = None
    operation_generation: int | None = Field(default=None, sa_type=_Big)
    since_ms: int = Field(sa_type=_Big)
    deadline_ms: int | None = Field(default=None, sa_type=_Big)
    reason: str | None = None
    message: str | None = None
    waiting_for: str | None = None
    conditions: list[dict[str, Any]] = Field(sa_type=JSONB)
    storage: str
    renew: bool
    restarting: bool
    failed: bool
    ready: bool
    degraded: bool
    ready_since_ms: int | None = Field(default=None, sa_type=_Big)
    last_ready_at_ms: int | None = Field(default=None, sa_type=_Big)
    gateway_version: str | None = None
    attempts: int
    not_before_ms: int | None = Field(default=None, sa_type=_Big)
    route_state: str
    route_version: int = Field(sa_type=_Big)
    next_at_ms: int | None = Field(default=None, sa_type=_Big)
    created_at_ms: int = Field(sa_type=_Big)
    updated_at_ms: int = Field(sa_type=_Big)
    fence: bool


class MachineRow(_Base, table=True):
    """One machine; the partial index makes a second live machine of an instance impossible."""

    __tablename__ = "machines"  # pyright: ignore[reportAssignmentType]
    __table_args__ = (
        sa.Index(
            "machines_one_live", "instance_id", unique=True, postgresql_where=sa.text("stage IN ('planned', 'created')")
        ),
    )

    machine_id: str = Field(primary_key=True)
    instance_id: str = Field(index=True)
    generation: int = Field(sa_type=_Big)
    stage: str
    power: str
    endpoint: str | None = None
    controller: str | None = None
    endpoint_uid: int | None = Field(default=None, sa_type=_Big)
    controller_uid: int | None = Field(default=None, sa_type=_Big)
    boot_id: str | None = None
    state: dict[str, Any] = Field(sa_type=JSONB)
    changed_at_ms: int = Field(sa_type=_Big)


class BootRow(_Base, table=True):
    """Running time of one boot of a machine."""

    __tablename__ = "boots"  # pyright: ignore[reportAssignmentType]
    __table_args__ = (sa.Index("boots_open", "instance_id", postgresql_where=sa.text("NOT final")),)

    boot_id: str = Field(primary_key=True)
    instance_id: str
    machine_id: str
    tenant: str
    size: str
    last_observed_ms: int = Field(sa_type=_Big)
    counted_ms: int = Field(sa_type=_Big)
    gap_ms: int = Field(sa_type=_Big)
    published_ms: int = Field(sa_type=_Big)
    final: bool


class LeaseRow(_Base, table=True):
    """The port pair and the user of an instance under the process driver."""

    __tablename__ = "leases"  # pyright: ignore[reportAssignmentType]

    instance_id: str = Field(primary_key=True)
    port: int = Field(unique=True)
    uid: int | None = Field(default=None, unique=True)


class RetiredRow(_Base, table=True):
    """A port or user that is given to nobody else until a time; later the row tells how long ago it was somebody's."""

    __tablename__ = "retired"  # pyright: ignore[reportAssignmentType]

    kind: str = Field(primary_key=True)
    number: int = Field(primary_key=True)
    until_ms: int = Field(sa_type=_Big)


metadata = _Base.metadata
common_tables(metadata)


def table(row: type[SQLModel]) -> sa.Table:
    """The Core table of a row class, for statements without the ORM."""
    found: sa.Table = row.__table__  # pyright: ignore[reportAttributeAccessIssue, reportUnknownVariableType]
    return found
