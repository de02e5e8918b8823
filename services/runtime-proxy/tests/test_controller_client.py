"""The client of machines' controllers."""

from __future__ import annotations

import pytest
from hatchery_common.errors import Conflict
from hatchery_common.secrets import controller_token
from hatchery_common.testing.fake_gateway.wire import Request, Response, Server, json_response
from hatchery_runtime_proxy.adapters.controller import HttpControllers
from hatchery_runtime_proxy.ports import ControllerUnreachable, Machine

KEY = b"c" * 32


async def test_restart_is_asked_for_under_the_machines_token() -> None:
    seen: list[Request] = []
    answers = [
        json_response(202, {"accepted": True}),
        json_response(409, {}),
        Response(500),
        Response(200, b"nonsense"),
    ]

    async def handle(request: Request) -> Response:
        seen.append(request)
        return answers[len(seen) - 1]

    server = Server(handle)
    machine = Machine("mch_1", "http://unused", f"http://127.0.0.1:{await server.start('127.0.0.1', 0)}")
    controllers = HttpControllers(KEY)
    assert await controllers.restart_gateway(machine, "because") == {"accepted": True}
    assert (seen[0].method, seen[0].path, seen[0].json()) == ("POST", "/v1/gateway/restart", {"reason": "because"})
    assert seen[0].headers["authorization"] == f"Bearer {controller_token(KEY, 'mch_1')}"
    with pytest.raises(Conflict):
        await controllers.restart_gateway(machine, "again")
    for _ in range(2):
        with pytest.raises(ControllerUnreachable):
            await controllers.state(machine)
    await server.stop()
    with pytest.raises(ControllerUnreachable):
        await controllers.state(machine)
    with pytest.raises(ControllerUnreachable):
        await controllers.state(Machine("mch_1", "http://unused"))
    await controllers.close()
