"""The OpenAPI document against the application: whatever comes, no 5xx, and every answer as documented."""

from __future__ import annotations

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
PROOF = {
    "X-OA-Internal-Key": "oa-internal-key-0123456789",
    "X-OA-User-Id": "fuzz",
    "x-internal-api-key": "platform-key-0123456789",
}
BOUNDED = settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def test_no_input_breaks_the_api(app):
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) >= 25
    for operation in operations:
        _try(operation, GenerationMode.POSITIVE)
        try:
            _try(operation, GenerationMode.NEGATIVE)
        except Unsatisfiable:
            pass  # it takes no input, so none can be wrong


def _try(operation, mode):
    @given(case=operation.as_strategy(generation_mode=mode))
    @BOUNDED
    def call(case):
        for name, value in PROOF.items():
            case.headers[name] = value
        case.call_and_validate(checks=CHECKS)

    call()
