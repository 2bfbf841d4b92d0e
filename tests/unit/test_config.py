"""Settings from the environment."""

from __future__ import annotations

import pytest

from finetune_gateway.config import GatewayConfig
from finetune_http.settings import ConfigError
from finetune_operator.core.config import OperatorConfig

IMAGE = {"FINETUNE_TRAINER_IMAGE": "trainer:1"}


def test_everything_but_the_image_has_a_default() -> None:
    assert OperatorConfig.from_environment(IMAGE) == OperatorConfig(trainer_image="trainer:1")


def test_settings_are_read() -> None:
    config = OperatorConfig.from_environment(
        {
            **IMAGE,
            "FINETUNE_NAMESPACES": "ml, research",
            "FINETUNE_ALLOWED_ROOTS": "s3://acme/,hf://",
            "FINETUNE_TRUST_REMOTE_CODE": "true",
            "FINETUNE_WORKERS": "3",
            "FINETUNE_RESYNC_SECONDS": "60.5",
            "FINETUNE_PREPARE_RESOURCES": '{"limits": {"memory": "2Gi"}}',
            "FINETUNE_TMP_SIZE_LIMIT": "",
            "FINETUNE_RUN_AS_USER": "none",
            "FINETUNE_FS_GROUP": "1000680000",
            "FINETUNE_SECCOMP_PROFILE": "none",
            "FINETUNE_METRICS_FROM": '[{"podSelector": {"matchLabels": {"app": "prometheus"}}}]',
        }
    )
    assert config.namespaces == ("ml", "research")
    assert config.allowed_roots == ("s3://acme/", "hf://")
    assert config.trust_remote_code is True
    assert (config.workers, config.resync_seconds) == (3, 60.5)
    assert config.prepare_resources.limits == {"memory": "2Gi"}
    assert config.tmp_size_limit is None
    assert (config.run_as_user, config.fs_group, config.seccomp_profile) == (None, 1000680000, None)
    assert config.metrics_from == ({"podSelector": {"matchLabels": {"app": "prometheus"}}},)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, "FINETUNE_TRAINER_IMAGE is not set; name the image built from trainer_image/Dockerfile"),
        ({**IMAGE, "FINETUNE_TRAINER_IMAGE": ""}, "FINETUNE_TRAINER_IMAGE is not set"),
        ({**IMAGE, "FINETUNE_WORKERS": "many"}, "FINETUNE_WORKERS: 'many' cannot be read; expected a number"),
        ({**IMAGE, "FINETUNE_WORKERS": "0"}, "greater than 0"),
        ({**IMAGE, "FINETUNE_TRUST_REMOTE_CODE": "yes"}, "'yes' cannot be read; expected true or false"),
        ({**IMAGE, "FINETUNE_RUN_AS_USER": "0"}, "expected a number greater than 0, or none"),
        ({**IMAGE, "FINETUNE_SECCOMP_PROFILE": "Unconfined"}, "expected RuntimeDefault or none"),
        ({**IMAGE, "FINETUNE_METRICS_FROM": "monitoring"}, "expected a JSON list"),
        ({**IMAGE, "FINETUNE_METRICS_FROM": '[{"namespace": {}}]'}, "expected a JSON list"),
        ({**IMAGE, "FINETUNE_INSTANCE": "blue green"}, "FINETUNE_INSTANCE: 'blue green' is no name"),
        ({**IMAGE, "FINETUNE_EXCLUDED_NAMESPACES": "ml,team=a"}, "EXCLUDED_NAMESPACES: 'team=a' is no name"),
        ({**IMAGE, "FINETUNE_EXCLUDED_NAMESPACES": "a", "FINETUNE_NAMESPACES": "b"}, "set one of the two"),
        ({**IMAGE, "FINETUNE_COMPUTE_RESOURCES": "1 cpu"}, "expected JSON"),
    ],
)
def test_wrong_settings_are_named(environment: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        OperatorConfig.from_environment(environment)


def test_what_the_environment_says_is_read_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Local mode and tests make settings of their own: those of the shell are not mixed in."""
    monkeypatch.setenv("FINETUNE_WORKERS", "3")
    assert OperatorConfig(trainer_image="trainer:1").workers == 8


def test_a_gateways_settings_are_read() -> None:
    given = {
        "ENDPOINT": "router",
        "PORT": "9",
        "SHARE_PORT": "true",
        "ALLOWED_ORIGINS": "https://a https://b",
        "NAME": "",
    }
    config = GatewayConfig.from_environment({f"FINETUNE_GATEWAY_{name}": text for name, text in given.items()})
    assert (config.endpoint, config.name, config.port, config.share_port) == ("router", "gateway", 9, True)
    assert config.allowed_origins == {"https://a", "https://b"}
    assert (config.routes_file, config.door_url, config.access_log) == (None, None, True)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, "FINETUNE_GATEWAY_ENDPOINT is not set"),
        ({"FINETUNE_GATEWAY_ENDPOINT": "a", "FINETUNE_GATEWAY_PORT": "x"}, "FINETUNE_GATEWAY_PORT: 'x' cannot be read"),
        (
            {"FINETUNE_GATEWAY_ENDPOINT": "a", "FINETUNE_GATEWAY_ACCESS_LOG": "on"},
            "'on' cannot be read; expected true or false",
        ),
    ],
)
def test_wrong_settings_of_a_gateway_are_named(environment: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        GatewayConfig.from_environment(environment)
