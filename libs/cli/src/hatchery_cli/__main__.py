"""`python -m hatchery_cli` is the command `hatchery`."""

from hatchery_cli.main import run

run()
