"""Price sources: the operator's settings, and the pinned genai-prices package."""

from __future__ import annotations

import asyncio
import functools
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from hatchery_billing.domain.money import rate_in_pico
from hatchery_billing.domain.prices import PriceKey, PriceKind, Rates
from hatchery_billing.ports import Quote
from hatchery_billing.settings import BillingSettings

DEMO = "demo"  # the offline model answers without a provider: it is free
_FREE: Rates = {"input": [[0, 0]], "output": [[0, 0]], "cached": [[0, 0]]}
_Steps = list[list[int]]


class Prices:
    """Settings first, then the demo model, then the price list if one is chosen."""

    def __init__(self, settings: BillingSettings) -> None:
        self._settings = settings

    async def quote(self, key: PriceKey, at_ms: int) -> Quote:
        """What the thing costs at that moment."""
        if key.kind is PriceKind.MACHINE:
            micro = self._settings.machine_price.get(key.name)
            return Quote("settings", None if micro is None else {"second": rate_in_pico(micro)})
        own = self._settings.model_price.get(key.name)
        if own is not None:
            cached = own.input if own.cached is None else own.cached
            return Quote("settings", {"input": _flat(own.input), "output": _flat(own.output), "cached": _flat(cached)})
        provider, _, model = key.name.partition("/")
        if provider == DEMO or model == DEMO:
            return Quote("demo", _FREE)
        if self._settings.price_list == "none":
            return Quote("none", None)
        return await asyncio.to_thread(_listed, provider, model, at_ms)


def _flat(micro: Decimal) -> _Steps:
    return [[0, rate_in_pico(micro)]]


@functools.cache
def _snapshot() -> Any:
    """The package's bundled table: 30 MiB, so it is loaded when the first real model is priced. It never updates itself."""
    from genai_prices import data_snapshot

    return data_snapshot.get_snapshot()


def _listed(provider: str, model: str, at_ms: int) -> Quote:
    import genai_prices

    source = f"genai-prices {genai_prices.__version__}"
    info = _find(model, provider, None) or _find(model, None, f"https://{provider}/")
    return Quote(source, None if info is None else _dearest(info, at_ms))


def _find(model: str, name: str | None, url: str | None) -> Any | None:
    """The list's row of a model; it knows its providers by name and by address, usage events name them by their host."""
    try:
        return _snapshot().find_provider_model(model, None, name, url)[1]
    except LookupError:
        return None


def _dearest(info: Any, at_ms: int) -> Rates | None:
    """The day's dearest rates: a few providers price by the hour, which a price row does not follow."""
    midnight = datetime.fromtimestamp(at_ms / 1000, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    offers = [_rates(info.get_prices(midnight + timedelta(hours=hour, minutes=30))) for hour in range(24)]
    priced = [offer for offer in offers if offer is not None]
    return max(priced, key=lambda rates: (rates["output"][0][1], rates["input"][0][1]), default=None)


def _rates(prices: Any) -> Rates | None:
    entry, exit_ = prices.input_mtok, prices.output_mtok
    if entry is None and exit_ is None:
        return None  # priced by image, minute or search: nothing we can charge by tokens
    cached = entry if prices.cache_read_mtok is None else prices.cache_read_mtok
    return {"input": _steps(entry), "output": _steps(exit_), "cached": _steps(cached)}


def _steps(price: Any) -> _Steps:
    if price is None:
        return [[0, 0]]
    if isinstance(price, Decimal):
        return _flat(price)
    return [*_flat(price.base), *([tier.start, rate_in_pico(tier.price)] for tier in price.tiers)]
