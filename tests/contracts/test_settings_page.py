"""docs/reference/settings.md is what the settings classes say, and every setting says what it is for."""

from pathlib import Path

from hatchery_cli.catalogue.settings import all_settings, as_markdown

PAGE = Path(__file__).resolve().parents[2] / "docs/reference/settings.md"


def test_the_page_is_fresh() -> None:
    assert PAGE.read_text() == as_markdown(all_settings()), (
        "run `hatchery settings --markdown > docs/reference/settings.md`"
    )


def test_every_setting_is_described_and_no_variable_means_two_things() -> None:
    rows = all_settings()
    assert [row.variable for row in rows if not row.description] == []
    assert len({row.variable for row in rows}) == len(rows)
    assert {row.service for row in rows} >= {"api", "provisioner", "billing", "agent", "runtime-proxy"}
