"""The reducer: any interleaving of crashes and retries folds to one answer per run."""

from __future__ import annotations

from hatchery_agent.domain.coalescing import Coalescer
from hatchery_agent.domain.folding import RunPhase, ThreadState, fold
from hatchery_agent.domain.waiting import WAITING_PHASE
from hatchery_common.contracts.threads import ThreadEntry, ThreadEntryType
from hypothesis import given
from hypothesis import strategies as st

T = ThreadEntryType


def entry(kind: T, run_id: str | None = "r1", attempt: int | None = None, **data: object) -> ThreadEntry:
    return ThreadEntry(id="e", type=kind, thread_id="t", at_ms=0, run_id=run_id, attempt=attempt, data=data)


def placed(*entries: ThreadEntry) -> list[tuple[int, ThreadEntry]]:
    return list(enumerate(entries, start=1))


QUESTION = entry(T.MESSAGE_USER, text="hi", message_id="m1")


def test_a_higher_attempt_replaces_the_partial_text_of_a_lower_one():
    state = fold(
        placed(
            QUESTION,
            entry(T.RUN_QUEUED),
            entry(T.RUN_STARTED, attempt=1),
            entry(T.TEXT_DELTA, attempt=1, text="He"),
            entry(T.RUN_STARTED, attempt=2),
            entry(T.TEXT_DELTA, attempt=2, text="Hello"),
            entry(T.TEXT_DELTA, attempt=1, text="lo (late)"),
        )
    )
    assert state.runs["r1"].visible_text == "Hello"
    assert state.runs["r1"].attempt == 2
    assert [(m.role, m.text) for m in state.messages] == [("user", "hi"), ("assistant", "Hello")]


def test_the_first_end_counts():
    state = fold(
        placed(
            QUESTION,
            entry(T.RUN_STARTED, attempt=1),
            entry(T.MESSAGE_ASSISTANT, attempt=1, text="A"),
            entry(T.RUN_FINISHED, attempt=1),
            entry(T.RUN_STARTED, attempt=2),
            entry(T.MESSAGE_ASSISTANT, attempt=2, text="B"),
            entry(T.RUN_FAILED, attempt=2, code="late"),
        )
    )
    assert state.runs["r1"].phase is RunPhase.FINISHED
    assert state.runs["r1"].answer == "A"
    assert state.open_runs == []


kinds = st.sampled_from(list(T))
soup = st.lists(
    st.builds(
        entry,
        kinds,
        run_id=st.sampled_from(["r1", "r2", None]),
        attempt=st.sampled_from([None, 1, 2, 3]),
        text=st.text(max_size=3),
    ),
    max_size=40,
)


@given(soup, st.integers(0, 40))
def test_folding_in_two_halves_equals_folding_at_once(entries: list[ThreadEntry], cut: int):
    whole = fold(placed(*entries))
    halves = ThreadState()
    for sequence, item in placed(*entries)[:cut]:
        halves.apply(sequence, item)
    for sequence, item in placed(*entries)[max(0, cut - 3) :]:  # a reader that resumes may see some again
        halves.apply(sequence, item)
    assert halves == whole


@given(soup)
def test_nothing_after_an_end_changes_a_run(entries: list[ThreadEntry]):
    state = ThreadState()
    ends: dict[str, tuple[RunPhase, str]] = {}
    for sequence, item in placed(*entries):
        state.apply(sequence, item)
        for run in state.runs.values():
            if run.ended:
                assert ends.setdefault(run.run_id, (run.phase, run.visible_text)) == (run.phase, run.visible_text)


@given(
    st.lists(st.tuples(st.lists(st.text(min_size=1, max_size=5), max_size=6), st.booleans()), min_size=1, max_size=6)
)
def test_attempts_that_die_anywhere_never_mix_their_texts(attempts: list[tuple[list[str], bool]]):
    entries = [QUESTION, entry(T.RUN_QUEUED)]
    answer = None
    for number, (texts, completes) in enumerate(attempts, start=1):
        entries.append(entry(T.RUN_STARTED, attempt=number))
        entries += [entry(T.TEXT_DELTA, attempt=number, text=text) for text in texts]
        if completes:
            answer = "".join(texts)
            entries += [entry(T.MESSAGE_ASSISTANT, attempt=number, text=answer), entry(T.RUN_FINISHED, attempt=number)]
            break
    run = fold(placed(*entries)).runs["r1"]
    assert run.visible_text == (answer if answer is not None else "".join(attempts[len(attempts) - 1][0]))
    assert run.ended == (answer is not None)


def test_an_entry_of_a_later_release_changes_nothing():
    waiting = [QUESTION, entry(T.RUN_STARTED, attempt=1), entry(T.RUN_STATUS, attempt=1, phase=WAITING_PHASE)]
    of_tomorrow = ThreadEntry.model_validate({**waiting[-1].model_dump(), "type": "tool.called", "data": {}})
    assert fold(placed(*waiting)).runs["r1"].waiting
    assert fold(placed(*waiting, of_tomorrow)).runs == fold(placed(*waiting)).runs


@given(st.lists(st.tuples(st.text(max_size=20), st.integers(0, 30)), max_size=60))
def test_coalescing_loses_nothing_and_keeps_the_order(pieces: list[tuple[str, int]]):
    coalescer, now, out = Coalescer(), 0, []
    for text, pause in pieces:
        now += pause
        if coalescer.wait_ms(now) == 0:
            out.append(coalescer.take())
        coalescer.add(text, now)
    out.append(coalescer.take())
    assert "".join(out) == "".join(text for text, _ in pieces)
    assert all(len(batch.encode()) < 512 + 80 for batch in out)


def test_the_first_text_is_due_at_once_the_rest_by_time_or_size():
    coalescer = Coalescer()
    assert coalescer.wait_ms(0) is None
    coalescer.add("a", 0)
    assert coalescer.wait_ms(0) == 0
    coalescer.take()
    coalescer.add("b", 10)
    assert coalescer.wait_ms(20) == 40
    coalescer.add("c" * 512, 20)
    assert coalescer.wait_ms(20) == 0
