"""Asks the data plane whether a gateway answers along its owner's path."""

from __future__ import annotations

from hatchery_common.contracts.gateways import ProbeRequest, ProbeResponse
from hatchery_common.errors import HatcheryError

from hatchery_provisioner.domain.errors import DriverTransient
from hatchery_provisioner.domain.instance import Instance, Machine
from hatchery_provisioner.domain.reasons import Reason
from hatchery_provisioner.reconciler.workbench import Workbench


class ProbeRefused(DriverTransient):
    """The data plane says no, or says nothing: not the machine's fault, so it is asked again until the deadline."""


async def probe(bench: Workbench, instance: Instance, machine: Machine) -> ProbeResponse:
    """One question along the present route; raises ProbeRefused for any answer but yes."""
    request = ProbeRequest(
        tenant=instance.tenant,
        instance_id=instance.instance_id,
        machine_id=machine.machine_id,
        route_version=instance.route_version,
    )
    try:
        answer = await bench.tools.prober.probe(request)
        if answer.ok:
            return answer
        detail = f"{answer.stage.value}: {answer.detail or 'refused'}"
    except HatcheryError as error:
        detail = error.message
    raise ProbeRefused(Reason.PROBE, f"the gateway does not answer along its owner's path ({detail})")
