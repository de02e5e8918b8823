"""Dead letters: listed, sent again with a mark, and no longer a worry of the doctor's."""

from __future__ import annotations

import json
from typing import Any

from hatchery_cli.deadletters import read_letters, redrive
from hatchery_cli.doctor.bus import check_bus, check_dead_letters
from hatchery_cli.rendering import nkey_seed
from hatchery_common.bus.authorization import ADMIN
from hatchery_common.bus.replay import Operator
from hatchery_common.errors import HatcheryError, InvalidInput
from operators_stage import ROOT_KEY, told, worker

SEED = nkey_seed(ROOT_KEY, ADMIN)


async def listed(hatchery: Any, *options: str) -> list[dict[str, Any]]:
    return json.loads((await hatchery("stream", "dlq", "ls", "--json", *options)).stdout)


async def sent(hatchery: Any, *words: str) -> list[dict[str, Any]]:
    return json.loads((await hatchery("stream", "dlq", "redrive", *words, "--json")).stdout)["letters"]


async def test_dead_letters_are_listed_and_sent_again(bus_url: str, hatchery: Any) -> None:
    await told(bus_url, dead=True)
    letters = await listed(hatchery)
    assert [(one["id"], one["code"], one["durable"]) for one in letters] == [("run_1", "refusal", "worker")]
    assert "refusal" in (await hatchery("stream", "dlq", "ls")).stdout
    number = str(letters[0]["sequence"])
    assert [one["sent_as"] for one in await sent(hatchery, number)] == [None], "dry"
    assert (await listed(hatchery, "--waiting")) == letters
    [again] = await sent(hatchery, number, "--execute")
    stored = json.loads((await hatchery("stream", "show", "CMD", str(again["sent_as"]), "--json")).stdout)
    assert (stored["id"], stored["subject"]) == ("run_1", "cmd.ta.thread.post.thd_1")
    assert isinstance((await hatchery("stream", "dlq", "redrive", "77")).exception, HatcheryError)
    assert isinstance((await hatchery("stream", "dlq", "redrive")).exception, InvalidInput)


async def test_what_was_sent_again_stays_as_history_and_no_longer_waits(bus_url: str, hatchery: Any) -> None:
    await told(bus_url, dead=True)
    [again] = await sent(hatchery, "--all", "--execute")
    [letter] = await listed(hatchery)
    assert letter["sent_again_as"] == again["sent_as"]
    assert letter["sent_again_at"] is not None
    assert await listed(hatchery, "--waiting") == []
    assert await sent(hatchery, "--all", "--execute") == []
    assert len(await sent(hatchery, str(letter["sequence"]), "--execute")) == 1, "by name it can be sent once more"
    mark = json.loads((await hatchery("stream", "tail", "DLQ", "-n", "1", "--json")).stdout)
    assert (mark["subject"], mark["body"]["id"]) == (f"dlq.redriven.{letter['sequence']}", "run_1")


async def test_a_dismissed_letter_stays_with_its_reason_and_no_longer_waits(bus_url: str, hatchery: Any) -> None:
    await told(bus_url, dead=True)
    [letter] = await listed(hatchery)
    number = str(letter["sequence"])
    assert isinstance((await hatchery("stream", "dlq", "dismiss", number, "--because", " ")).exception, InvalidInput)
    assert isinstance((await hatchery("stream", "dlq", "dismiss", "77", "--because", "x")).exception, HatcheryError)
    assert await listed(hatchery, "--waiting") == [letter]
    for _ in range(2):
        done = await hatchery("stream", "dlq", "dismiss", number, "--because", "a trial of ours", "--json")
        assert json.loads(done.stdout) == {"dismissed": {number: "cmd.ta.thread.post.thd_1"}}
    assert await listed(hatchery, "--waiting") == []
    [after] = await listed(hatchery)
    assert (after["dismissed_because"], after["sent_again_as"]) == ("a trial of ours", None)
    assert "a trial of ours" in (await hatchery("stream", "dlq", "ls")).stdout
    assert (await check_dead_letters(bus_url, SEED)).level == "ok"
    assert await sent(hatchery, "--all", "--execute") == []
    [again] = await sent(hatchery, number, "--execute")
    assert (await listed(hatchery))[0]["sent_again_as"] == again["sent_as"], "by name it can still be sent again"


async def test_the_doctor_is_quiet_once_a_letter_was_sent_again(bus_url: str) -> None:
    assert (await check_dead_letters(bus_url, SEED)).level == "ok"
    await told(bus_url, dead=True)
    found = await check_dead_letters(bus_url, SEED)
    assert (found.code, found.level) == ("dead_letters", "warning")
    assert found.text.startswith("1 ")
    async with Operator.open(bus_url, seed=SEED) as bus:
        [letter] = await read_letters(bus)
        await redrive(bus, letter)
    assert (await check_dead_letters(bus_url, SEED)).level == "ok"
    await told(bus_url, dead=True)  # whoever takes it again gives it up again: that is a new letter
    assert (await check_dead_letters(bus_url, SEED)).level == "warning"


async def test_a_crash_before_the_mark_leaves_the_letter_waiting(bus_url: str) -> None:
    await told(bus_url, dead=True)
    async with Operator.open(bus_url, seed=SEED) as bus:
        [letter] = await read_letters(bus)
        await bus.redrive(letter.record.sequence)  # and then the process is gone
        assert (await read_letters(bus))[0].is_waiting
        before = await bus.count("CMD")
        await redrive(bus, letter)
        assert await bus.count("CMD") == before, "sent twice, stored once"
        assert not (await read_letters(bus))[0].is_waiting


async def test_a_healthy_bus_has_nothing_to_report(bus_url: str) -> None:
    found = await check_bus(bus_url, ROOT_KEY, [worker])
    assert {one.level for one in found} == {"ok"}, found
    assert {one.code for one in found} == {"streams", "lag", "dead_letters", "bus_rights"}
