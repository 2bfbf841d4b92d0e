"""Settings of one gateway replica, from its environment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator
from pydantic_settings import NoDecode, SettingsConfigDict

from finetune_http.settings import Settings, Switch


def _split(value: Any) -> Any:
    return value.split() if isinstance(value, str) else value


class GatewayConfig(Settings):
    """Where things are and what a client may ask for. Durations in seconds.

    Each can be set by the environment variable FINETUNE_GATEWAY_<NAME IN CAPITALS>.
    """

    model_config = SettingsConfigDict(env_prefix="FINETUNE_GATEWAY_")

    endpoint: str
    namespace: str = "default"
    name: str = "gateway"
    """This replica's name: the pod's."""
    host: str = "0.0.0.0"  # noqa: S104 - a server of a cluster's Service
    port: int = 8080
    status_port: int = 8081
    """Probes and metrics, not offered to clients."""
    share_port: Switch = False
    """Local mode: listen where another gateway of the same user listens, which this one is about to replace."""
    routes_file: Path | None = None
    """A file with the routes (local mode). None: the ConfigMap `<endpoint>-routes`, watched by name."""
    keys_folder: Path | None = None
    """A mounted Secret: file name = client, content = key. None: open."""
    address: str = ""
    """The host at which the endpoint's other replicas reach this one's status port: the pod's. Empty: they do not."""
    door_url: str | None = None
    """Where observations go. None: nowhere."""
    door_token_file: Path | None = None
    door_ca_file: Path | None = None
    observations_file: Path | None = None
    """Local mode: observations are written there instead of being posted."""
    tracing_endpoint: str = ""
    """A collector of OpenTelemetry that takes spans over OTLP/HTTP, such as http://collector:4318. Empty: no spans."""
    body_bytes: int = 4 * 1024 * 1024
    concurrency: int = 256
    timeout_seconds: float = 120.0
    body_timeout_seconds: float = 30.0
    """A client that takes longer to send its request is told so and let go; one that takes as long to begin, let go."""
    heartbeat_seconds: float = 15.0
    """After how long without news a streamed answer that has begun gets a comment: proxies close what is silent."""
    first_answer_seconds: float = 60.0
    """Nothing is counted of a version that has not answered this gateway, for as long at most."""
    drain_seconds: float = 30.0
    access_log: Switch = True
    allowed_origins: Annotated[frozenset[str], NoDecode, BeforeValidator(_split)] = frozenset()
    """Origins whose pages may read answers; `*`: all."""
