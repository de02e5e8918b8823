"""Settings of billing: the monthly grant, the prices of machine time, and prices that override the price list."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated

from hatchery_common.settings import Settings
from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import SettingsConfigDict


class ModelRate(BaseModel):
    """The operator's own price of a model, in micro-USD per token (the same number as USD per million tokens)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: Decimal = Field(ge=0, le=1_000_000)
    output: Decimal = Field(ge=0, le=1_000_000)
    cached: Decimal | None = Field(default=None, ge=0, le=1_000_000)


class BillingSettings(Settings):
    """What billing grants and charges."""

    model_config = SettingsConfigDict(env_prefix="HATCHERY_BILLING_")

    monthly_grant_micro_usd: int = Field(
        default=5_000_000,
        ge=0,
        le=1_000_000_000_000,
        description="credits of each open account a month, in micro-USD; 0: none",
    )
    monthly_grant_expires: bool = Field(
        default=False, description="whether what is left of a monthly grant lapses when its month ends"
    )
    machine_price: dict[str, Annotated[Decimal, Field(ge=0, le=9_000)]] = Field(
        default={"standard": Decimal(1)},
        description='micro-USD per running second by machine size, as JSON: {"standard": "1"} is 0.0036 USD per hour',
    )
    model_price: dict[str, ModelRate] = Field(
        default={},
        description='prices that rule over the price list, as JSON: {"provider/model": {"input": "2.5", "output": "10"}}, '
        "in micro-USD per token (= USD per million tokens)",
    )
    price_list: str = Field(
        default="genai-prices",
        pattern="^(genai-prices|none)$",
        description="where other model prices come from: the pinned genai-prices package, or none",
    )
    unknown_after_s: int = Field(
        default=900,
        ge=10,
        description="seconds after which a model call that was opened and never recorded is listed as unknown",
    )
