"""The table of the mission (mission.toml), checked while it is read."""

from __future__ import annotations

import ast
import tomllib
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
STATUSES = ("covered", "planned", "decided")


@dataclass(frozen=True)
class Item:
    """One item of the mission and where it stands."""

    id: str
    status: str
    text: str


def wanted_ids() -> list[str]:
    """Every id that the mission names, in its order."""
    return (HERE / "mission_ids.txt").read_text().split()


def read_table() -> dict[str, Item]:
    """The items by id; raises ValueError for a status that does not exist."""
    rows = tomllib.loads((HERE / "mission.toml").read_text())
    items = {name: Item(name, row["status"], row["item"]) for name, row in rows.items()}
    wrong = [item.id for item in items.values() if item.status not in STATUSES]
    if wrong:
        raise ValueError(f"unknown status: {', '.join(wrong)}")
    return items


def marked_tests() -> dict[str, list[str]]:
    """For each id the tests of this directory that carry its mark, read from their sources."""
    found: dict[str, list[str]] = {}
    for path in sorted(HERE.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                for name in (mark for decorator in node.decorator_list if (mark := _mission(decorator))):
                    found.setdefault(name, []).append(f"{path.name}::{node.name}")
    return found


def _mission(decorator: ast.expr) -> str | None:
    if not isinstance(decorator, ast.Call) or not ast.unparse(decorator.func).endswith("mark.mission"):
        return None
    first = decorator.args[0]
    return str(first.value) if isinstance(first, ast.Constant) else None
