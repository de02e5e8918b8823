"""Many rows in one statement: written by one JSON parameter, typed by the table itself, and found by one array of keys.

One statement, not executemany: the trigger that checks sums sees a transaction's postings together. One array, not a list of
parameters: a statement takes 32,767 of those.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection


def quoted(names: Sequence[str]) -> str:
    """Column names for a statement (`grant` and `transaction` are words of SQL)."""
    return ", ".join(f'"{name}"' for name in names)


async def insert_rows(
    connection: AsyncConnection, table: sa.Table, rows: Sequence[Mapping[str, Any]], *, conflict: str = ""
) -> None:
    """Insert all rows, in their order; columns that the rows lack become NULL. `conflict` is an ON CONFLICT clause."""
    if not rows:
        return
    columns = quoted(list(rows[0]))
    statement = sa.text(
        f"INSERT INTO {table.name} ({columns}) SELECT {columns} "  # noqa: S608 - names come from our own tables
        f"FROM jsonb_populate_recordset(NULL::{table.name}, CAST(:rows AS jsonb)) {conflict}"
    )
    await connection.execute(statement, {"rows": json.dumps([dict(row) for row in rows])})


def among(column: sa.ColumnElement[str], values: Iterable[str]) -> sa.ColumnElement[bool]:
    """The condition that a text is one of these, however many."""
    return column == sa.any_(_array(values))


def pair_among(
    first: sa.ColumnElement[str], second: sa.ColumnElement[str], pairs: Sequence[tuple[str, str]]
) -> sa.ColumnElement[bool]:
    """The condition that two texts are one of these pairs, however many."""
    wanted = sa.func.unnest(_array(one for one, _ in pairs), _array(other for _, other in pairs))
    return sa.tuple_(first, second).in_(sa.select(sa.text("*")).select_from(wanted))


def _array(values: Iterable[str]) -> sa.BindParameter[Any]:
    return sa.bindparam(None, list(values), type_=ARRAY(sa.Text), unique=True)


def overwrite(table: sa.Table, columns: Sequence[str]) -> str:
    """The clause that overwrites these columns of the row with the same primary key."""
    key = quoted([column.name for column in table.primary_key])
    changes = ", ".join(f'"{name}" = excluded."{name}"' for name in columns)
    return f"ON CONFLICT ({key}) DO UPDATE SET {changes}"


def add_up(table: sa.Table, columns: Sequence[str]) -> str:
    """The clause that adds these columns to those of the row with the same primary key."""
    key = quoted([column.name for column in table.primary_key])
    changes = ", ".join(f'"{name}" = {table.name}."{name}" + excluded."{name}"' for name in columns)
    return f"ON CONFLICT ({key}) DO UPDATE SET {changes}"
