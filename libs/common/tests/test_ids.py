"""Ids sort by time, tenants never collide by replacement, threads are deterministic."""

from hatchery_common.ids import is_token, new_id, tenant_key, thread_id, uuid7
from hypothesis import given
from hypothesis import strategies as st


def test_uuid7_increases_and_carries_its_version() -> None:
    made = [uuid7() for _ in range(5000)]
    assert made == sorted(made)
    assert len(set(made)) == len(made)
    assert {one.version for one in made} == {7}


def test_new_ids_are_subject_tokens() -> None:
    assert is_token(new_id("ins"))
    assert new_id("ins").startswith("ins_")


@given(st.text(), st.text())
def test_tenants_of_different_users_differ(one: str, other: str) -> None:
    assert (tenant_key(one) == tenant_key(other)) == (one == other)
    assert is_token(tenant_key(one))


def test_names_that_replacement_would_merge_stay_apart() -> None:
    assert len({tenant_key(name) for name in ("a.b", "a-b", "A-b", "a_b")}) == 4


def test_a_client_key_always_names_the_same_thread_of_its_tenant_only() -> None:
    assert thread_id("t1", "k") == thread_id("t1", "k")
    assert thread_id("t1", "k") != thread_id("t2", "k")
    assert thread_id("t1") != thread_id("t1")
