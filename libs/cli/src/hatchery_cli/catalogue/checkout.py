"""The generated files of this checkout: the catalogue's page, the AsyncAPI document, samples and fingerprints."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

from hatchery_common.errors import SetupError

from hatchery_cli.catalogue import samples
from hatchery_cli.catalogue.asyncapi import as_asyncapi
from hatchery_cli.catalogue.registry import Catalogue
from hatchery_cli.catalogue.rendering import as_markdown


def find_root(start: Path | None = None) -> Path:
    """The root of the checkout that holds the working directory (or this code); raises SetupError outside of one."""
    for place in (start or Path.cwd(), Path(__file__)):
        for directory in (place, *place.parents):
            if (directory / "docs").is_dir() and (directory / "libs" / "common" / "pyproject.toml").is_file():
                return directory
    raise SetupError("this is no checkout of Hatchery", hint="run it where the sources are, or pass --root")


def pages(root: Path, catalogue: Catalogue) -> dict[Path, str]:
    """The generated pages by path."""
    document = as_asyncapi(catalogue, version("hatchery-common"))
    return {
        root / "docs/reference/catalogue.md": as_markdown(catalogue),
        root / "docs/reference/asyncapi.json": json.dumps(document, indent=1, sort_keys=True) + "\n",
    }


def check(root: Path, catalogue: Catalogue) -> list[str]:
    """Everything that is wrong: broken rules, stale pages, broken promises about shapes."""
    stale = [
        f"{path.relative_to(root)} is stale: run `hatchery catalogue --write`"
        for path, text in pages(root, catalogue).items()
        if not path.exists() or path.read_text() != text
    ]
    return [*catalogue.problems(), *stale, *samples.check(root / "tests" / "contracts")]


def write(root: Path, catalogue: Catalogue) -> list[Path]:
    """Bring all generated files up to date; returns those that changed."""
    written: list[Path] = []
    for path, text in pages(root, catalogue).items():
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            written.append(path)
    return [*written, *samples.write(root / "tests" / "contracts")]
