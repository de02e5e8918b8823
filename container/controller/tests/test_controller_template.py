"""The configuration template: locked paths stay locked, defaults may be changed."""

import json
from pathlib import Path

import pytest
from hatchery_controller.domain.bundle import parse_bundle
from hatchery_controller.domain.environment import EnvironmentRefused, gateway_environment, open_sealed
from hatchery_controller.domain.layout import Layout
from hatchery_controller.domain.template import render_config
from machine_under_test import HEADER, MODEL_TOKEN, TOKEN, make_bundle

LAYOUT = Layout(Path("/data/m1"))


def bundle_of(**changes):
    return parse_bundle(json.dumps(make_bundle(18701, **changes)).encode())


def render(overrides=None, **changes):
    return render_config(bundle_of(overrides=overrides or {}, **changes), LAYOUT)


def at(config, path):
    for key in path.split("."):
        config = config[key]
    return config


def test_trusted_proxy_with_the_secret_header_and_no_token():
    config, ignored = render()
    auth = config["gateway"]["auth"]
    assert auth["mode"] == "trusted-proxy"
    assert "token" not in auth
    assert auth["trustedProxy"]["userHeader"] == HEADER
    assert auth["trustedProxy"]["requiredHeaders"] == ["x-forwarded-proto"]
    assert auth["trustedProxy"]["allowUsers"] == ["owner@mch_1", "svc@mch_1", "ctl@mch_1"]
    assert auth["identityScopes"]["owner@mch_1"] == ["operator.admin"]
    assert "operator.admin" not in auth["identityScopes"]["svc@mch_1"]
    assert config["gateway"]["bind"] == "loopback"
    assert config["gateway"]["port"] == 18701
    assert ignored == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("agents.defaults.heartbeat.every", "0m"),
        ("agents.defaults.utilityModel", ""),
        ("plugins.entries.memory-core.config.dreaming.enabled", False),
        ("skills.workshop.autonomous.mode", "off"),
        ("gateway.controlUi.sessionObserver", False),
        ("update.checkOnStart", False),
        ("models.catalogRefresh.enabled", False),
        ("telemetry.enabled", False),
    ],
)
def test_nothing_spends_or_calls_out_unasked(path, value):
    assert at(render()[0], path) == value


def test_the_users_own_automations_stay_on():
    assert "cron" not in render()[0]


def test_the_agent_asks_before_it_runs_commands_where_loopback_is_trusted():
    assert render()[0]["tools"]["exec"]["mode"] == "ask"
    assert "tools" not in render(gateway={"allow_loopback": False})[0]


def test_no_secret_value_in_the_file_but_the_header_name():
    text = json.dumps(render()[0])
    assert MODEL_TOKEN not in text
    assert TOKEN not in text
    assert '"${HATCHERY_LLM_KEY}"' in text


def test_overrides_change_what_is_free():
    config, ignored = render(
        {
            "channels": {"telegram": {"enabled": True}},
            "agents": {"defaults": {"heartbeat": {"every": "30m"}, "userTimezone": "Europe/Berlin"}},
            "models": {"providers": {"mine": {"baseUrl": "https://models.example.test"}}},
            "gateway": {"controlUi": {"sessionObserver": True}},
            "tools": {"exec": {"mode": "deny"}},
        }
    )
    assert ignored == []
    assert config["channels"] == {"telegram": {"enabled": True}}
    assert config["agents"]["defaults"]["heartbeat"]["every"] == "30m"
    assert config["agents"]["defaults"]["workspace"] == "/data/m1/workspace"
    assert set(config["models"]["providers"]) == {"hatchery", "mine"}
    assert config["gateway"]["controlUi"]["sessionObserver"] is True
    assert config["tools"]["exec"]["mode"] == "deny"


def test_null_takes_a_default_away_but_no_locked_one():
    config, ignored = render({"agents": {"defaults": {"heartbeat": None, "workspace": None}}, "models": None})
    assert "heartbeat" not in config["agents"]["defaults"]
    assert config["agents"]["defaults"]["workspace"] == "/data/m1/workspace"
    assert config["models"]["mode"] == "replace"
    assert ignored == ["agents.defaults.workspace", "models"]


@pytest.mark.parametrize(
    ("overrides", "refused"),
    [
        ({"gateway": {"auth": {"mode": "none"}}}, "gateway.auth"),
        ({"gateway": {"auth": None}}, "gateway.auth"),
        ({"gateway": None}, "gateway"),
        ({"gateway": "x"}, "gateway"),
        ({"gateway": []}, "gateway"),
        ({"gateway": {"port": 1}}, "gateway.port"),
        ({"gateway": {"bind": "lan"}}, "gateway.bind"),
        ({"gateway": {"customBindHost": "0.0.0.0"}}, "gateway.customBindHost"),
        ({"gateway": {"trustedProxies": ["0.0.0.0/0"]}}, "gateway.trustedProxies"),
        ({"gateway": {"tls": {}}}, "gateway.tls"),
        ({"gateway": {"tools": {"allow": []}}}, "gateway.tools.allow"),
        ({"gateway": {"tools": None}}, "gateway.tools"),
        ({"gateway": {"controlUi": {"allowedOrigins": ["*"]}}}, "gateway.controlUi.allowedOrigins"),
        ({"gateway": {"controlUi": {"dangerouslyAllowHostHeaderOriginFallback": True}}},
         "gateway.controlUi.dangerouslyAllowHostHeaderOriginFallback"),
        ({"gateway": {"http": {"endpoints": {"responses": {"enabled": False}}}}}, "gateway.http.endpoints.responses"),
        ({"models": {"mode": "merge"}}, "models.mode"),
        ({"models": {"providers": {"hatchery": {"baseUrl": "http://evil"}}}}, "models.providers.hatchery"),
        ({"models": {"providers": []}}, "models.providers"),
        ({"models": "x"}, "models"),
        ({"agents": {"defaults": "x"}}, "agents.defaults"),
        ({"agents": {"defaults": {"workspace": "/"}}}, "agents.defaults.workspace"),
        ({"logging": {"file": "/etc/x"}}, "logging"),
        ({"update": {"checkOnStart": True}}, "update"),
        ({"env": {"vars": {"A": "1"}}}, "env"),
        ({"secrets": {}}, "secrets"),
        ({"session": {"store": "/x"}}, "session.store"),
        ({"$include": "./other.json"}, "$include"),
        ({"models": {"$include": "./other.json"}}, "models.$include"),
        ({"channels": {"a": [{"$include": "x"}]}}, "channels.a.$include"),
        ({"unheardOf": {"x": 1}}, "unheardOf"),
    ],
)  # fmt: skip
def test_overrides_cannot_unlock(overrides, refused):
    plain, _ = render()
    config, ignored = render(overrides)
    assert ignored == [refused]
    for section in ("gateway", "models", "logging", "update", "agents"):
        assert config[section] == plain[section]
    assert "$include" not in json.dumps(config)


def test_rendering_does_not_share_anything_with_the_bundle():
    overrides = {"channels": {"telegram": {"allowFrom": ["1"]}}}
    config, _ = render(overrides)
    config["channels"]["telegram"]["allowFrom"].append("2")
    assert render(overrides)[0]["channels"]["telegram"]["allowFrom"] == ["1"]


def test_environment_is_ours_plus_the_users():
    environment = gateway_environment(bundle_of(environment={"TELEGRAM_BOT_TOKEN": "1:x"}), LAYOUT)
    assert environment["TELEGRAM_BOT_TOKEN"] == "1:x"
    assert environment["HATCHERY_LLM_KEY"] == MODEL_TOKEN
    assert environment["OPENCLAW_STATE_DIR"] == "/data/m1/state"
    assert environment["OPENCLAW_NO_RESPAWN"] == "1"
    assert "NODE_COMPILE_CACHE" not in environment
    assert TOKEN not in environment.values()
    assert HEADER not in environment.values()


@pytest.mark.parametrize(
    "name", ["PATH", "HOME", "OPENCLAW_CONFIG_PATH", "HATCHERY_LLM_KEY", "NODE_OPTIONS", "LD_PRELOAD"]
)
def test_reserved_variables_are_refused_by_name(name):
    with pytest.raises(EnvironmentRefused, match=name) as caught:
        gateway_environment(bundle_of(environment={name: "the-value"}), LAYOUT)
    assert caught.value.reason == "environment_reserved"
    assert "the-value" not in str(caught.value)


@pytest.mark.parametrize("variables", [{"A B": "1"}, {"": "1"}, {"1A": "x"}, {"A=B": "1"}, {"A": "x\0y"}])
def test_malformed_variables_are_refused(variables):
    with pytest.raises(EnvironmentRefused) as caught:
        gateway_environment(bundle_of(environment=variables), LAYOUT)
    assert caught.value.reason == "environment_invalid"


def test_sealed_environment_fails_closed_and_names_the_variable():
    assert open_sealed(None) == {}
    for sealed in ({"OPENAI_API_KEY": "cipher-text"}, {}, "opaque", ["x"]):
        with pytest.raises(EnvironmentRefused) as caught:
            open_sealed(sealed)
        assert caught.value.reason == "sealed_environment_unreadable"
        assert "cipher-text" not in str(caught.value)
    with pytest.raises(EnvironmentRefused, match="OPENAI_API_KEY"):
        open_sealed({"OPENAI_API_KEY": "cipher-text"})
