"""Units: amounts are integers of micro-USD (1e-6 USD); rates are integers of pico-USD (1e-12 USD) per second or token.

A charge is summed exactly in pico-USD and rounded once, half to even. Machine time is rounded down on the boot's running
total, so at one price no split of the time changes what it costs.
"""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal

PICO_PER_MICRO = 1_000_000


def rate_in_pico(micro: Decimal) -> int:
    """A rate in micro-USD per unit (for tokens: USD per million) as whole pico-USD per unit."""
    return int((micro * PICO_PER_MICRO).to_integral_value(ROUND_HALF_EVEN))


def round_half_even(pico: int) -> int:
    """Whole micro-USD nearest to an amount in pico-USD; the even one of two equally near."""
    micro, rest = divmod(pico, PICO_PER_MICRO)
    if 2 * rest > PICO_PER_MICRO or (2 * rest == PICO_PER_MICRO and micro % 2 == 1):
        micro += 1
    return micro
