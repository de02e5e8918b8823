"""What is kept, and money (A9, A10)."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hatchery_common.ids import tenant_key
from people import Person, new_user
from visitor import Visitor
from whole_stack import WholeStack, eventually, run_for_a_charged_second

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
_GRANT = 5_000_000


def summary_of(site: Visitor) -> dict[str, Any]:
    return site.get("/api/openclaw/billing/summary")


@pytest.mark.mission("A9.1")
def test_a9_1_instance_rows_have_status_and_times_and_no_secrets(stack: WholeStack, ann: Person) -> None:
    rows = stack.sql("provisioner", "SELECT * FROM instances WHERE instance_id = $1", ann.instance["instance_id"])
    assert len(rows) == 1
    row = rows[0]
    assert row["tenant"] == tenant_key(ann.user)
    assert row["status"] == "ready"
    assert row["created_at_ms"] <= row["last_ready_at_ms"] <= row["updated_at_ms"]
    machines = stack.sql("provisioner", "SELECT * FROM machines WHERE instance_id = $1", ann.instance["instance_id"])
    view = stack.sql("api", "SELECT * FROM instances WHERE instance_id = $1", ann.instance["instance_id"])
    kept = json.dumps([rows, machines, view], default=str)
    assert not re.search(r"secret|password|token|x-hatchery-", kept)
    for name in ("machine-identity", "controller", "runtime-service", "model-token"):
        assert stack.key(name) not in kept


@pytest.mark.mission("A9.2")
def test_a9_2_a_balance_is_the_sum_of_its_postings(stack: WholeStack, ann: Person) -> None:
    tenant = tenant_key(ann.user)
    sums = """SELECT a.balance, (SELECT sum(p.amount) FROM postings p WHERE p.account_id = a.id)::bigint AS posted
              FROM accounts a WHERE a.tenant = $1"""
    found = stack.sql("billing", sums, tenant)
    assert len(found) == 1
    assert abs(found[0]["balance"]) == abs(found[0]["posted"])
    open_ended = "SELECT transaction FROM postings GROUP BY transaction HAVING sum(amount) <> 0"
    assert stack.sql("billing", open_ended) == []
    verified = stack.json("billing", "verify")
    assert verified["ok"], verified
    assert verified["postings"] > 0


@pytest.mark.mission("A9.5")
def test_a9_5_users_and_peppers_are_rows(stack: WholeStack) -> None:
    user = new_user()
    stack.visitor(user, pepper="a-pepper").get("/api/me")
    rows = stack.sql("api", "SELECT * FROM users WHERE user_id = $1", user)
    assert len(rows) == 1
    assert rows[0]["pepper"] == "a-pepper"
    assert rows[0]["tenant"] == tenant_key(user)
    assert rows[0]["access_enabled"] is True


@pytest.mark.mission("A10.1")
def test_a10_1_grant_burn_and_balance_are_exact_integers(newcomer: tuple[str, Visitor]) -> None:
    _, site = newcomer
    site.get("/api/me")
    granted = eventually(lambda: (found := summary_of(site))["opened"] and found["granted_micro"] and found)
    assert granted["balance_micro"] == granted["granted_micro"] == _GRANT
    site.get("/api/me")
    site.wish("provision")
    site.say(site.thread()["thread_id"], "spend a little")
    site.wish("stop")
    spent = eventually(lambda: (found := summary_of(site))["burned_micro"] > 0 and found)
    lines = spent["lines"]
    assert all(isinstance(line["amount_micro"], int) for line in lines)
    assert [line["amount_micro"] for line in lines if line["kind"] == "grant"] == [_GRANT], "once in a period"
    assert spent["balance_micro"] == sum(line["amount_micro"] for line in lines)
    assert spent["balance_micro"] == _GRANT - spent["burned_micro"]


@pytest.mark.mission("A10.2")
def test_a10_2_the_summary_explains_every_charge(newcomer: tuple[str, Visitor]) -> None:
    _, site = newcomer
    instance_id = site.wish("provision")["instance_id"]
    site.say(site.thread()["thread_id"], "count my words")
    run_for_a_charged_second()
    site.wish("stop")
    kinds = {"grant", "machine_time", "model_usage"}
    eventually(lambda: kinds <= {line["kind"] for line in summary_of(site)["lines"]})
    summary = summary_of(site)
    lines = {line["kind"]: line for line in summary["lines"]}
    assert lines["machine_time"]["reference"] == instance_id
    assert lines["model_usage"]["reference"].startswith("call_")
    assert f"{summary['input_tokens']} in, {summary['output_tokens']} out" in lines["model_usage"]["description"]
    assert summary["currency"] == "USD"
    assert summary["balance_usd"] == summary["balance_micro"] / 1_000_000
    assert len(summary["lines"]) == summary["transactions"]
