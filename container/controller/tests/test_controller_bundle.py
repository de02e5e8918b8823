"""The boot bundle: what is malformed is named, and never quoted."""

import json

import pytest
from hatchery_controller.domain.bundle import BundleInvalid, parse_bundle, service_token_of
from machine_under_test import MODEL_TOKEN, TOKEN, make_bundle


def parse(bundle):
    return parse_bundle(json.dumps(bundle).encode())


def test_a_good_bundle():
    bundle = parse(make_bundle(8900, overrides=None, later_field=1))
    assert bundle.gateway.port == 8900
    assert bundle.model.context_window == 1000
    assert bundle.overrides == {}
    assert TOKEN not in repr(bundle)
    assert MODEL_TOKEN not in repr(bundle)


def test_a_dropped_user_drops_the_group_too():
    assert parse(make_bundle(gateway={"uid": 1234})).gateway.gid == 1234


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"machine_id": "../x"}, "machine_id"),
        ({"service_token": "short"}, "service_token"),
        ({"service_token": None}, "service_token"),
        ({"gateway": {"port": 0}}, "gateway.port"),
        ({"gateway": {"port": "8900"}}, "gateway.port"),
        ({"gateway": {"port": True}}, "gateway.port"),
        ({"gateway": {"bind": "auto"}}, "gateway.bind"),
        ({"gateway": {"bind": []}}, "gateway.bind"),
        ({"gateway": {"node": "node"}}, "gateway.node"),
        ({"gateway": {"uid": 0}}, "gateway.uid"),
        ({"gateway": {"user_header": "authorization\r\nx: y"}}, "gateway.user_header"),
        ({"gateway": {"trusted_proxies": ["10.0.0.0/8"]}}, "gateway.trusted_proxies"),
        ({"gateway": {"trusted_proxies": "127.0.0.1"}}, "gateway.trusted_proxies"),
        ({"gateway": {"allow_loopback": "yes"}}, "gateway.allow_loopback"),
        ({"gateway": {"allowed_origins": ["*"]}}, "gateway.allowed_origins"),
        ({"gateway": {"owner": "a b"}}, "gateway.owner"),
        ({"model": []}, "model"),
        ({"model": {"base_url": "ftp://x"}}, "model.base_url"),
        ({"overrides": []}, "overrides"),
        ({"environment": {"A": 1}}, "environment"),
    ],
)
def test_the_wrong_field_is_named(changes, field):
    with pytest.raises(BundleInvalid, match=field):
        parse(make_bundle(8900, **changes))


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'"x"', b"\xff\xfe", b"[" * 100_000, b" " * (1024 * 1024 + 1)])
def test_what_is_no_bundle_at_all(raw):
    with pytest.raises(BundleInvalid):
        parse_bundle(raw)
    assert service_token_of(raw) is None


def test_the_parsers_text_does_not_quote_the_bundle():
    with pytest.raises(BundleInvalid) as caught:
        parse_bundle(b'{"service_token": "very-secret-token-value", oops}')
    assert "very-secret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_the_token_survives_a_bundle_that_is_wrong_elsewhere():
    assert service_token_of(json.dumps(make_bundle(gateway={"port": 0})).encode()) == TOKEN
