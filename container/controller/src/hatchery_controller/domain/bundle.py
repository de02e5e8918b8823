"""The boot bundle: everything a machine is told about itself, checked field by field before anything is done with it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, cast

MAX_BUNDLE_BYTES = 1024 * 1024

_IDENTIFIER = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SECRET = re.compile(r"[\x21-\x7e]{16,8192}")
_HEADER = re.compile(r"x-[a-z0-9-]{1,80}")
_ADDRESS = re.compile(r"[0-9A-Fa-f.:]{2,45}")  # one exact address: a range would admit neighbours
_IDENTITY = re.compile(r"[\x21-\x7e]{1,128}")
_ORIGIN = re.compile(r"https?://[^/\s*]{1,255}")
_URL = re.compile(r"https?://[^\s]{1,1024}")
_PATH = re.compile(r"/[^\x00]{1,4095}")
_MODEL = re.compile(r"[A-Za-z0-9._:/@-]{1,128}")


class BundleInvalid(ValueError):
    """The bundle does not say what a machine needs; the text names the field and never repeats its value."""


@dataclass(frozen=True, slots=True)
class GatewaySpec:
    """How to run the gateway and whom it obeys."""

    port: int
    bind: str
    node: str
    openclaw: str
    uid: int | None
    gid: int | None
    user_header: str = field(repr=False)
    required_headers: tuple[str, ...]
    trusted_proxies: tuple[str, ...]
    allow_loopback: bool
    owner: str
    service: str
    allowed_origins: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The one model provider a machine knows: our model gateway."""

    base_url: str
    token: str = field(repr=False)
    id: str
    context_window: int
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Bundle:
    """A checked boot bundle."""

    machine_id: str
    service_token: str = field(repr=False)
    gateway: GatewaySpec
    model: ModelSpec
    overrides: dict[str, Any] = field(repr=False)
    environment: dict[str, str] = field(repr=False)
    sealed: object = field(repr=False)


class _Reader:
    """Reads typed fields of one JSON object, naming the field that is wrong."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise BundleInvalid(f"{where} must be an object")
        self.values = cast("dict[str, Any]", value)
        self.where = where

    def _fail(self, key: str, problem: str) -> BundleInvalid:
        return BundleInvalid(f"{self.where}.{key} {problem}")

    def text(self, key: str, pattern: re.Pattern[str]) -> str:
        value = self.values.get(key)
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise self._fail(key, "is missing or malformed")
        return value

    def texts(self, key: str, pattern: re.Pattern[str]) -> tuple[str, ...]:
        value = self.values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(v, str) and pattern.fullmatch(v) for v in value):
            raise self._fail(key, "must be a list of well-formed strings")
        return tuple(cast("list[str]", value))

    def number(self, key: str, low: int, high: int, default: int | None = None) -> int:
        value = self.values.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self._fail(key, f"must be a whole number from {low} to {high}")
        return value

    def optional_number(self, key: str, low: int, high: int) -> int | None:
        return None if self.values.get(key) is None else self.number(key, low, high)

    def flag(self, key: str) -> bool:
        value = self.values.get(key, False)
        if not isinstance(value, bool):
            raise self._fail(key, "must be true or false")
        return value

    def mapping(self, key: str) -> dict[str, Any]:
        value = self.values.get(key)
        return {} if value is None else dict(_Reader(value, f"{self.where}.{key}").values)

    def child(self, key: str) -> _Reader:
        return _Reader(self.values.get(key), f"{self.where}.{key}")


def service_token_of(raw: bytes) -> str | None:
    """The service token of a bundle that may be wrong elsewhere, so that its failure can still be reported."""
    try:
        return _Reader(_decode(raw), "bundle").text("service_token", _SECRET)
    except BundleInvalid:
        return None


def parse_bundle(raw: bytes) -> Bundle:
    """The checked bundle; raises BundleInvalid naming the first field that is wrong."""
    top = _Reader(_decode(raw), "bundle")
    environment = top.mapping("environment")
    if not all(isinstance(value, str) for value in environment.values()):
        raise BundleInvalid("bundle.environment must map names to strings")
    return Bundle(
        machine_id=top.text("machine_id", _IDENTIFIER),
        service_token=top.text("service_token", _SECRET),
        gateway=_gateway(top.child("gateway")),
        model=_model(top.child("model")),
        overrides=top.mapping("overrides"),
        environment=environment,
        sealed=top.values.get("sealed"),
    )


def _decode(raw: bytes) -> object:
    if len(raw) > MAX_BUNDLE_BYTES:
        raise BundleInvalid("bundle is larger than 1 MiB")
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        # The parser's own text would quote the bundle.
        raise BundleInvalid("bundle is not valid JSON") from None


def _gateway(given: _Reader) -> GatewaySpec:
    bind = given.values.get("bind", "loopback")
    if bind not in ("loopback", "lan"):
        raise BundleInvalid("bundle.gateway.bind must be loopback or lan")
    uid = given.optional_number("uid", 1, 2**31)
    gid = given.optional_number("gid", 1, 2**31)
    return GatewaySpec(
        port=given.number("port", 1, 65535),
        bind=bind,
        node=given.text("node", _PATH),
        openclaw=given.text("openclaw", _PATH),
        uid=uid,
        gid=uid if gid is None else gid,  # dropping the user and keeping our group would be half a drop
        user_header=given.text("user_header", _HEADER),
        required_headers=given.texts("required_headers", _HEADER),
        trusted_proxies=given.texts("trusted_proxies", _ADDRESS),
        allow_loopback=given.flag("allow_loopback"),
        owner=given.text("owner", _IDENTITY),
        service=given.text("service", _IDENTITY),
        allowed_origins=given.texts("allowed_origins", _ORIGIN),
    )


def _model(given: _Reader) -> ModelSpec:
    return ModelSpec(
        base_url=given.text("base_url", _URL),
        token=given.text("token", _SECRET),
        id=given.text("id", _MODEL),
        context_window=given.number("context_window", 1, 2**31, 128_000),
        max_tokens=given.number("max_tokens", 1, 2**31, 8_000),
    )
