"""The process driver: each machine is a controller process of its own session on this host, in a directory of its own."""

from hatchery_provisioner.adapters.process.driver import ProcessDriver, ProcessPlaces
from hatchery_provisioner.adapters.process.leases import Lease, Leases, Range

__all__ = ["Lease", "Leases", "ProcessDriver", "ProcessPlaces", "Range"]
