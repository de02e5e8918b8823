"""Where prices come from."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hatchery_billing.adapters.prices import Prices
from hatchery_billing.domain.prices import PriceKey, PriceKind
from hatchery_billing.domain.rating import rate_call
from hatchery_billing.settings import BillingSettings
from hatchery_common.errors import SetupError
from hatchery_common.settings import load

NOW = 1_793_600_000_000


async def rates(name: str, environment: dict[str, str] | None = None, kind: PriceKind = PriceKind.MODEL) -> Any:
    quote = await Prices(load(BillingSettings, environment or {})).quote(PriceKey(kind, name), NOW)
    return quote.rates


async def test_the_demo_model_is_free():
    charge = rate_call(await rates("demo/demo"), input_tokens=10**9, cached_tokens=5, output_tokens=10**9)
    assert charge.amount_micro == 0


async def test_a_listed_model_costs_what_the_list_says():
    import genai_prices

    ours = rate_call(await rates("openai/gpt-4o"), input_tokens=123_457, cached_tokens=23_456, output_tokens=7_891)
    usage = genai_prices.Usage(input_tokens=123_457, cache_read_tokens=23_456, output_tokens=7_891)
    theirs = genai_prices.calc_price(usage, "gpt-4o", provider_id="openai").total_price
    assert ours.amount_micro == round(theirs * 10**6)


@pytest.mark.parametrize("tokens", [199_999, 200_000, 200_001])
async def test_tiers_follow_the_list(tokens: int):
    import genai_prices

    ours = rate_call(await rates("anthropic/claude-sonnet-4-5"), input_tokens=tokens, cached_tokens=0, output_tokens=77)
    usage = genai_prices.Usage(input_tokens=tokens, output_tokens=77)
    theirs = genai_prices.calc_price(usage, "claude-sonnet-4-5", provider_id="anthropic").total_price
    assert ours.amount_micro == round(theirs * 10**6)


async def test_a_model_priced_by_the_hour_costs_its_dearest_hour():
    assert (await rates("deepseek/deepseek-chat"))["input"] == [[0, 270_000]]


async def test_a_provider_may_be_named_by_its_host():
    """That is how the model gateway names it."""
    assert await rates("openrouter.ai/openai/gpt-4o") == await rates("openrouter/openai/gpt-4o") is not None
    assert await rates("api.openai.com/gpt-4o") == await rates("openai/gpt-4o")


@pytest.mark.parametrize("name", ["openai/no-such-model-at-all", "nobody/gpt-4o"])
async def test_an_unlisted_model_has_no_price(name: str):
    assert await rates(name) is None


async def test_settings_rule_over_the_list_and_may_be_all_there_is():
    own = {"HATCHERY_BILLING_MODEL_PRICE": '{"openai/gpt-4o": {"input": "1", "output": "2.5"}}'}
    assert await rates("openai/gpt-4o", own) == {
        "input": [[0, 10**6]],
        "output": [[0, 2_500_000]],
        "cached": [[0, 10**6]],
    }
    assert await rates("openai/gpt-4o", {"HATCHERY_BILLING_PRICE_LIST": "none"}) is None


async def test_machine_sizes_come_from_settings():
    environment = {"HATCHERY_BILLING_MACHINE_PRICE": '{"standard": "0.5", "large": "2"}'}
    assert await rates("large", environment, PriceKind.MACHINE) == {"second": 2_000_000}
    assert await rates("huge", environment, PriceKind.MACHINE) is None
    assert await rates("standard", {}, PriceKind.MACHINE) == {"second": 10**6}


@pytest.mark.parametrize(
    ("name", "value"),
    [("MONTHLY_GRANT_MICRO_USD", "-1"), ("MACHINE_PRICE", '{"standard": "-1"}'), ("PRICE_LIST", "litellm")],
)
def test_wrong_settings_are_named(name: str, value: str):
    with pytest.raises(SetupError, match=f"HATCHERY_BILLING_{name}"):
        load(BillingSettings, {f"HATCHERY_BILLING_{name}": value})


def test_defaults():
    assert load(BillingSettings, {}).monthly_grant_micro_usd == 5_000_000
    assert load(BillingSettings, {}).machine_price == {"standard": Decimal(1)}
