"""What is said of a wrong URL shows no password."""

from __future__ import annotations

import pytest
from hatchery_cli.errors import DatabaseRefused
from hatchery_cli.urls import require_database_url


@pytest.mark.parametrize("password", ["s3cret#x", "s3cret/x", "s3cret?x"])
def test_a_password_that_cuts_its_url_is_not_told(password: str) -> None:
    with pytest.raises(DatabaseRefused) as raised:
        require_database_url(f"postgresql://postgres:{password}@db.example:5432/hatchery")
    assert "s3cret" not in f"{raised.value.message} {raised.value.hint}"
    assert "%23" in raised.value.message
