"""The table of the mission is whole, its page is fresh, and what it calls covered was shown in this run."""

from __future__ import annotations

import pytest
from render import PAGE, page
from shown import SHOWN
from table import marked_tests, read_table, wanted_ids


def covered_ids() -> set[str]:
    return {item.id for item in read_table().values() if item.status == "covered"}


def test_every_item_of_the_mission_is_in_the_table() -> None:
    assert len(wanted_ids()) == 128
    assert list(read_table()) == wanted_ids()


def test_every_item_says_where_it_stands() -> None:
    assert [item.id for item in read_table().values() if not item.text.strip()] == []


def test_every_covered_item_has_a_test_named_by_it() -> None:
    tests = marked_tests()
    assert covered_ids() - set(tests) == set(), "covered, but no test carries its mark"
    assert set(tests) - covered_ids() == set(), "a test carries the mark of an item that is not covered"
    for name, found in tests.items():
        prefix = f"test_{name.lower().replace('.', '_')}_"
        assert all(test.split("::")[1].startswith(prefix) for test in found), found


def test_the_page_is_fresh() -> None:
    assert PAGE.read_text() == page(), "run: python tests/acceptance/render.py"


def test_every_covered_item_was_shown_in_this_run(request: pytest.FixtureRequest) -> None:
    chosen = {mark.args[0] for item in request.session.items for mark in item.iter_markers("mission")}
    if left_out := covered_ids() - chosen:
        pytest.skip(f"only a part of the acceptance tests was chosen; {len(left_out)} items were left out")
    shown = request.config.stash.get(SHOWN, set())
    assert sorted(covered_ids() - shown) == [], "covered, but no test of it has passed"
