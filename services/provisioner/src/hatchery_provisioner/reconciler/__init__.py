"""Brings every instance to its desired state: level-triggered, one lane per instance, all of it safe to repeat."""

from hatchery_provisioner.reconciler.scheduler import Reconciler
from hatchery_provisioner.reconciler.sweeper import Sweeper
from hatchery_provisioner.reconciler.workbench import Tools

__all__ = ["Reconciler", "Sweeper", "Tools"]
