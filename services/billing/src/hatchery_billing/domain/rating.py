"""Rating: from seconds and tokens to money."""

from __future__ import annotations

from dataclasses import dataclass

from hatchery_billing.domain.money import PICO_PER_MICRO, round_half_even
from hatchery_billing.domain.prices import Rates


@dataclass(frozen=True)
class TokenCharge:
    """What a call costs; `remainder_pico` is what rounding left over (negative when it rounded up)."""

    amount_micro: int
    remainder_pico: int


def step(steps: list[list[int]], input_tokens: int) -> int:
    """The rate of the last step that starts below the call's input tokens."""
    rate = steps[0][1]
    for start, pico in steps[1:]:
        if input_tokens > start:
            rate = pico
    return rate


def rate_call(rates: Rates, *, input_tokens: int, cached_tokens: int, output_tokens: int) -> TokenCharge:
    """Price one call. `input_tokens` includes the cached ones, which are priced by their own rate instead."""
    pico = (
        (input_tokens - cached_tokens) * step(rates["input"], input_tokens)
        + cached_tokens * step(rates["cached"], input_tokens)
        + output_tokens * step(rates["output"], input_tokens)
    )
    micro = round_half_even(pico)
    return TokenCharge(micro, pico - micro * PICO_PER_MICRO)


def machine_cost(accrued_pico: int) -> int:
    """What a boot has cost in all: its accrued amount rounded down; a charge is the difference of two of these."""
    return accrued_pico // PICO_PER_MICRO
