"""What Hatchery relies on in a gateway, as one suite that the stand-in and the real OpenClaw both pass.

A test module derives from `GatewayConformance` and supplies the fixture `gateway`: a started `GatewayProcess` with a `ModelStub`
as its model provider, shared by the module. The tests of `GatewayAccess` run first; those that restart the gateway stand last.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from typing import Any, NamedTuple, Self

import pytest
from gateway_access import GatewayAccess
from gateway_process import KEY, GatewayProcess
from gateway_suite import LOOP, PATIENCE_S, TURN_S, UnderTest, late_hello, message_texts
from hatchery_runtime_proxy.adapters.openclaw import OpenClawGateways
from hatchery_runtime_proxy.domain.chat import ChatEvent
from hatchery_runtime_proxy.domain.transcripts import find_turn
from hatchery_runtime_proxy.ports import GatewayRejected

__all__ = ["LOOP", "GatewayConformance", "UnderTest"]


class Sent(NamedTuple):
    """One turn, as `chat` takes it; its message is like no other."""

    session: str
    message: str
    key: str

    @classmethod
    def of(cls, session: str) -> Self:
        return cls(session, f"the unlucky {uuid.uuid4().hex}", f"run_{uuid.uuid4().hex}")


def asked_for(gateway: UnderTest, message: str) -> int:
    """How often the model was asked for this message; the user text after it is the gateway's own."""
    lasts = [text for request in gateway.model.requests for text in message_texts(request, "user")[-2:-1]]
    return sum(message in text for text in lasts)


class GatewayConformance(GatewayAccess):
    """Turns, and what a restart does to them."""

    async def test_a_turn_streams_and_ends_with_usage(self, gateway: UnderTest, gateways: OpenClawGateways) -> None:
        gateway.model.delay = 0.2
        session, calls = gateway.session(), len(gateway.model.requests)
        events = await self.turn(gateways, gateway, session, "tell me about eggs", f"run_{uuid.uuid4().hex}")
        kinds = [event.kind.value for event in events]
        assert kinds[0] == "accepted"
        assert kinds[-1] == "final"
        assert kinds.count("delta") >= 2, "the answer came in one piece"
        assert "".join(event.data["text"] for event in events if event.kind == "delta") == gateway.model.reply
        assert events[-1].data["text"] == gateway.model.reply
        assert events[-1].data["usage"]["input_tokens"] == 100
        assert events[-1].data["usage"]["output_tokens"] == 7
        asked = gateway.model.requests[calls]
        assert asked["stream"] is True
        assert asked["stream_options"] == {"include_usage": True}
        assert any("tell me about eggs" in text for text in message_texts(asked, "user"))

    async def test_every_row_of_a_turn_names_it_and_its_time(
        self, gateway: UnderTest, gateways: OpenClawGateways
    ) -> None:
        """Where only a turn's last rows are read, each of them must prove when it was taken."""
        sent = Sent.of(gateway.session())
        await self.turn(gateways, gateway, *sent)
        rows = await self.rows(gateways, gateway, sent)
        assert [row["role"] for row in rows] == ["user", "assistant"]
        for row in rows:
            turn = find_turn([row], sent.key)
            assert turn.asked
            assert turn.asked_at_ms > 0

    async def test_a_second_turn_carries_the_first(self, gateway: UnderTest, gateways: OpenClawGateways) -> None:
        session = gateway.session()
        await self.turn(gateways, gateway, session, "my name is Ada", f"run_{uuid.uuid4().hex}")
        await self.turn(gateways, gateway, session, "what is my name", f"run_{uuid.uuid4().hex}")
        asked = gateway.model.requests[-1]
        assert any("my name is Ada" in text for text in message_texts(asked, "user"))
        assert gateway.model.reply in message_texts(asked, "assistant")

    async def test_the_same_key_runs_once(self, gateway: UnderTest, gateways: OpenClawGateways) -> None:
        session, key = gateway.session(), f"run_{uuid.uuid4().hex}"
        first = await self.turn(gateways, gateway, session, "once", key)
        calls = len(gateway.model.requests)
        again = await self.turn(gateways, gateway, session, "once", key)
        assert again[0].data == {"run_id": key, "replayed": True}
        assert again[-1].data == first[-1].data
        assert len(gateway.model.requests) == calls

    async def test_a_second_reader_joins_a_running_turn(self, gateway: UnderTest, gateways: OpenClawGateways) -> None:
        gateway.model.delay = 0.3
        session, key = gateway.session(), f"run_{uuid.uuid4().hex}"
        first = asyncio.create_task(self.turn(gateways, gateway, session, "long", key))
        await asyncio.sleep(0.7)
        second = await self.turn(gateways, gateway, session, "long", key)
        assert second[0].data == {"run_id": key, "replayed": True}
        assert second[-1].data["text"] == (await first)[-1].data["text"] == gateway.model.reply

    async def test_a_key_used_for_another_message_is_refused(
        self, gateway: UnderTest, gateways: OpenClawGateways
    ) -> None:
        key, machine = f"run_{uuid.uuid4().hex}", gateway.process.machine
        await self.turn(gateways, gateway, gateway.session(), "one thing", key)
        params = {"sessionKey": gateway.session(), "message": "another thing", "idempotencyKey": key}
        with pytest.raises(GatewayRejected) as refused:
            await gateways.call(machine, "chat.send", params)
        assert refused.value.context["details"] == {"reason": "chat-request-conflict"}

    async def test_abort_ends_a_turn(self, gateway: UnderTest, gateways: OpenClawGateways) -> None:
        gateway.model.delay = 1.0
        session, key = gateway.session(), f"run_{uuid.uuid4().hex}"
        last: ChatEvent | None = None
        async with asyncio.timeout(60):
            async for event in gateways.chat(gateway.process.machine, session, "stop me", key):
                last = event
                if event.kind == "delta":
                    params = {"sessionKey": session, "runId": key}
                    answer = await gateways.call(gateway.process.machine, "chat.abort", params)
                    assert answer["runIds"] in ([key], [])
        assert last is not None
        assert last.data["code"] == "aborted"
        again = await self.turn(gateways, gateway, session, "stop me", key)
        assert again[-1].data["code"] == "aborted"

    async def test_a_message_during_a_turn_steers_it(self, gateway: UnderTest, gateways: OpenClawGateways) -> None:
        gateway.model.delay = 1.5
        session, key = gateway.session(), f"run_{uuid.uuid4().hex}"
        second: list[ChatEvent] = []
        last: ChatEvent | None = None
        async with asyncio.timeout(90):
            async for event in gateways.chat(gateway.process.machine, session, "start", key):
                last = event
                if event.kind == "delta" and not second:  # from then on the run is one that can be steered
                    gateway.model.delay = 0.1
                    second = await self.turn(gateways, gateway, session, "and also this", f"run_{uuid.uuid4().hex}")
        assert second[-1].kind == "final"
        assert second[-1].data["steered_into"] == key
        assert last is not None
        assert last.data["text"].count(gateway.model.reply) == 2

    async def test_a_turn_killed_at_its_acknowledgement_runs_once(
        self, gateway: UnderTest, gateways: OpenClawGateways
    ) -> None:
        """Acknowledged is not yet asked: the model had nothing of it, so the same key runs after the restart, and once."""
        known, new = await self.killed_at_acknowledgement(gateway, gateways)
        machine = gateway.process.machine
        for sent, kept in ((known, [(known.key, "interrupted")]), (new, [])):
            history = await gateways.call(machine, "chat.history", {"sessionKey": sent.session})
            waiting = [(item["runId"], item["state"]) for item in history["pendingInputs"]["items"]]
            assert waiting == kept
        for sent in (known, new):
            assert asked_for(gateway, sent.message) == 0
            first = await self.turn(gateways, gateway, *sent)
            assert first[0].data == {"run_id": sent.key, "replayed": False}
            assert first[-1].data["text"] == gateway.model.reply
            again = await self.turn(gateways, gateway, *sent)
            assert (again[0].data["replayed"], again[-1].data) == (True, first[-1].data)
            assert asked_for(gateway, sent.message) == 1

    async def killed_at_acknowledgement(self, gateway: UnderTest, gateways: OpenClawGateways) -> tuple[Sent, Sent]:
        """Two turns, in a session that was used before and in a new one, of which the transcripts know nothing after the kill.

        The row follows the acknowledgement by 0.1 s or more: a kill that came later did not make this case, and is repeated.
        """
        for _ in range(4):
            known, new = Sent.of(gateway.session()), Sent.of(gateway.session())
            await self.turn(gateways, gateway, known.session, "before", f"run_{uuid.uuid4().hex}")
            async with asyncio.timeout(60):
                await asyncio.gather(*(self.until("accepted", gateways, gateway, sent) for sent in (known, new)))
            await gateway.process.kill()
            await gateway.process.start()
            await gateway.process.wait_ready()
            rows = [row for sent in (known, new) for row in await self.rows(gateways, gateway, sent)]
            if not rows:
                return known, new
        raise AssertionError("every kill came after the turn's row")

    async def test_a_killed_turn_is_interrupted_and_never_repeated(
        self, gateway: UnderTest, gateways: OpenClawGateways
    ) -> None:
        """The gateway forgets its keys at a restart; the client must not let that start a second run."""
        sent, done = Sent.of(gateway.session()), f"run_{uuid.uuid4().hex}"
        answered = await self.turn(gateways, gateway, sent.session, "before", done)
        gateway.model.delay, before = 2.0, time.monotonic()
        seen: list[ChatEvent] = []
        async with asyncio.timeout(60):
            async for event in gateways.chat(gateway.process.machine, *sent):
                seen.append(event)
                if event.kind == "delta":
                    await gateway.process.kill()
        assert seen[-1].data["code"] == "gateway_connection_lost"
        gateway.model.delay = 0.0
        age_s = time.monotonic() - before  # of the turn at the new process's start
        await gateway.process.start()
        await gateway.process.wait_ready()
        assert [row["role"] for row in await self.rows(gateways, gateway, sent)] == ["user"]
        # The hello of a gateway that is busy starting may come as late as the turn is old.
        for hello_s in (0.0, age_s + 0.5):
            again = await self.late_turn(gateway, sent, hello_s)
            assert [event.kind.value for event in again] == ["accepted", "error"], again
            assert again[-1].data["code"] == "interrupted", again
        replay = await self.turn(gateways, gateway, sent.session, "before", done)
        assert replay[-1].data == answered[-1].data
        assert asked_for(gateway, sent.message) == 1

    async def rows(self, gateways: OpenClawGateways, gateway: UnderTest, sent: Sent) -> list[dict[str, Any]]:
        """What the transcript holds under the turn's key."""
        history = await gateways.call(gateway.process.machine, "chat.history", {"sessionKey": sent.session})
        ours = (f"{sent.key}:user", f"{sent.key}:assistant")
        return [
            row
            for row in history["messages"]
            if row.get("idempotencyKey") in ours or row.get("__openclaw", {}).get("runId") == sent.key
        ]

    async def until(self, kind: str, gateways: OpenClawGateways, gateway: UnderTest, sent: Sent) -> None:
        """Sends and returns at the first event of this kind."""
        async with contextlib.aclosing(gateways.chat(gateway.process.machine, *sent)) as events:
            async for event in events:
                if event.kind == kind:
                    return
        raise AssertionError(f"no {kind}")

    async def late_turn(self, gateway: UnderTest, sent: Sent, hello_s: float) -> list[ChatEvent]:
        """The turn over a connection of its own, whose hello takes this much longer."""
        client = OpenClawGateways(KEY, timeout_s=hello_s + PATIENCE_S)
        try:
            async with late_hello(gateway.process.machine, hello_s) as machine, asyncio.timeout(hello_s + TURN_S):
                return [event async for event in client.chat(machine, *sent)]
        finally:
            await client.close()

    async def test_the_gateway_resumes_an_interrupted_turn_itself(
        self, gateway: UnderTest, gateways: OpenClawGateways
    ) -> None:
        """Follows the kill of a test before: a system message and an answer under a run id of the gateway's own."""
        listed = await gateways.call(gateway.process.machine, "sessions.list", {"limit": 100})
        keys = [row["key"] for row in listed["sessions"] if row.get("abortedLastRun") is not None]
        async with asyncio.timeout(40):
            while True:
                for key in keys:
                    history = await gateways.call(gateway.process.machine, "chat.history", {"sessionKey": key})
                    texts = [str(row["content"]) for row in history["messages"] if row["role"] == "user"]
                    resumed = [text for text in texts if text.startswith("[System] Your previous turn was interrupted")]
                    if resumed and history["messages"][-1]["role"] == "assistant":
                        return
                await asyncio.sleep(0.5)

    async def test_a_state_directory_has_one_owner(self, gateway: UnderTest) -> None:
        intruder = GatewayProcess(gateway.process.command, gateway.process.root, gateway.model.base_url)
        await intruder.start(beside=True)
        assert await intruder.wait_exit() == 78
        assert "another OpenClaw process owns gateway-lifecycle" in intruder.log

    async def test_sigterm_ends_it_cleanly(self, gateway: UnderTest) -> None:
        assert await gateway.process.terminate() == 0

    @pytest.mark.parametrize(
        ("place", "named"),
        [
            ((), 'Unrecognized key: "bogus"'),
            (("gateway",), 'gateway: Unrecognized key: "bogus"'),
        ],
    )
    async def test_an_unknown_key_exits_78(self, gateway: UnderTest, place: tuple[str, ...], named: str) -> None:
        configuration = gateway.process.configuration()
        node = configuration
        for step in place:
            node = node[step]
        node["bogus"] = 1
        await gateway.process.start(configuration)
        assert await gateway.process.wait_exit() == 78
        assert named in gateway.process.log

    async def test_a_missing_mode_exits_78(self, gateway: UnderTest) -> None:
        configuration = gateway.process.configuration()
        del configuration["gateway"]["mode"]
        await gateway.process.start(configuration)
        assert await gateway.process.wait_exit() == 78
        assert "missing gateway.mode" in gateway.process.log
