"""`python -m hatchery_controller`: runs the controller of one machine."""

from hatchery_controller.main import run

run()
