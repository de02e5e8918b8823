"""Prices: what a unit of something costs from a moment on. Rows are never changed, a new price is a new row."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from hatchery_common.ids import base32

CHANGE_NOTICE_MS = 5 * 60_000  # a change takes effect later than any event that is being handled while it is written
Rates = dict[str, Any]
"""JSON of one price, in pico-USD: `{"second": n}`, or `{"input": steps, "output": steps, "cached": steps}`.

Steps are `[[from_input_tokens, pico], …]`: the last step whose start lies below the call's input tokens prices all of its tokens.
"""


class PriceKind(StrEnum):
    """What a price is for; the name is a machine size or `provider/model`."""

    MACHINE = "machine"
    MODEL = "model"


@dataclass(frozen=True)
class PriceKey:
    """What is priced."""

    kind: PriceKind
    name: str


@dataclass(frozen=True)
class Price:
    """One row of the price book; `rates` is None where the thing was known to have no price."""

    key: PriceKey
    effective_from_ms: int
    source: str
    rates: Rates | None

    @property
    def id(self) -> str:
        """Derived from the content, so equal prices have equal ids everywhere."""
        parts = [self.key.kind, self.key.name, self.effective_from_ms, self.source, self.rates]
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).digest()
        return f"prc_{base32(digest)[:26]}"


class PriceBook:
    """The prices that one batch of events needs."""

    def __init__(self, prices: Iterable[Price] = ()) -> None:
        self._rows: dict[PriceKey, list[Price]] = {}
        for price in sorted(prices, key=lambda row: row.effective_from_ms):
            self._rows.setdefault(price.key, []).append(price)

    def __contains__(self, key: PriceKey) -> bool:
        return key in self._rows

    def add(self, price: Price) -> None:
        """Take in one more row."""
        rows = self._rows.setdefault(price.key, [])
        rows.append(price)
        rows.sort(key=lambda row: row.effective_from_ms)

    def at(self, key: PriceKey, at_ms: int) -> Price | None:
        """The price in force at that moment; None when the thing has no price then."""
        found: Price | None = None
        for price in self._rows.get(key, []):
            if price.effective_from_ms <= at_ms or found is None:
                found = price
        return found if found is not None and found.rates is not None else None
