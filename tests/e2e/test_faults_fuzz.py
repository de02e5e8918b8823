"""The running api against its own OpenAPI document, with a real token: whatever comes, no 5xx, and the api goes on."""

from __future__ import annotations

import time
from typing import Any

import pytest
import requests
import schemathesis
from faults import faulty_stack
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from whole_stack import WholeStack

ANN = "ann@example.com"
ROUND_S = 15.0  # for each of the two modes
BOUNDED = settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_no_input_makes_the_running_api_fail() -> None:
    with faulty_stack() as (stack, faults):
        faults.uninstall()  # whoever is provisioned by chance ends in error at once and costs nothing
        stack.up()
        proof = {
            "Authorization": f"Bearer {stack.token(ANN)}",
            "x-internal-api-key": stack.key("internal-api-key"),
        }
        schema = schemathesis.openapi.from_url(f"{stack.url}/openapi.json")
        operations = [found.ok() for found in schema.get_all_operations()]
        assert len(operations) >= 25
        answers = 0
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            end = time.monotonic() + ROUND_S
            for operation in operations:
                answers += tried(operation, mode, proof, end)
        assert answers > 3 * len(operations)
        faults.heal()
        goes_on(stack)


def tried(operation: Any, mode: GenerationMode, proof: dict[str, str], end: float) -> int:
    """How many answers came, none of them a 5xx; each operation gets one even when the time is over."""
    answers = 0

    @given(case=operation.as_strategy(generation_mode=mode))
    @BOUNDED
    def call(case: Any) -> None:
        nonlocal answers
        if answers and time.monotonic() > end:
            return
        case.headers.update(proof)
        try:
            case.call_and_validate(checks=[not_a_server_error], timeout=10)
        except requests.exceptions.InvalidHeader:
            return  # nobody can send it
        answers += 1

    try:
        call()
    except Unsatisfiable:
        pass  # it takes no input, so none can be wrong
    return answers


def goes_on(stack: WholeStack) -> None:
    """Another user's instance still comes and answers, and nothing was unexpected."""
    site = stack.visitor("bob@example.com")
    site.wish("provision")
    assert site.say(site.thread()["thread_id"], "still there?").end.event == "run.finished"
    log = (stack.directory / "logs" / "services.log").read_text()
    assert "api.request.failed" not in log
    assert "Traceback" not in log
