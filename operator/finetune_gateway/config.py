"""Settings of one gateway replica, from its environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class GatewayConfig:
    """Where things are and what a client may ask for. Durations in seconds."""

    endpoint: str
    namespace: str
    name: str
    """This replica's name: the pod's."""
    host: str = "0.0.0.0"  # noqa: S104 - a server of a cluster's Service
    port: int = 8080
    status_port: int = 8081
    """Probes and metrics, not offered to clients."""
    share_port: bool = False
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
    body_bytes: int = 4 * 1024 * 1024
    concurrency: int = 256
    timeout_seconds: float = 120.0
    body_timeout_seconds: float = 30.0
    """A client that takes longer to send its request is told so and let go."""
    heartbeat_seconds: float = 15.0
    """After how long without news a streamed answer that has begun gets a comment: proxies close what is silent."""
    drain_seconds: float = 30.0
    access_log: bool = True
    allowed_origins: frozenset[str] = frozenset()
    """Origins whose pages may read answers; `*`: all."""

    @staticmethod
    def from_environment(environment: Mapping[str, str]) -> GatewayConfig:
        """Read FINETUNE_GATEWAY_* variables. Raises ValueError naming a variable that is missing or no number."""

        def text(name: str, default: str | None = None) -> str:
            value = environment.get(f"FINETUNE_GATEWAY_{name}", default)
            if value is None:
                raise ValueError(f"FINETUNE_GATEWAY_{name} is not set")
            return value

        def path(name: str) -> Path | None:
            value = environment.get(f"FINETUNE_GATEWAY_{name}")
            return Path(value) if value else None

        def number(name: str, default: float) -> float:
            value = text(name, str(default))
            try:
                return float(value)
            except ValueError:
                raise ValueError(f"FINETUNE_GATEWAY_{name}: {value!r} is not a number") from None

        return GatewayConfig(
            endpoint=text("ENDPOINT"),
            namespace=text("NAMESPACE", "default"),
            name=text("NAME", "gateway"),
            host=text("HOST", "0.0.0.0"),  # noqa: S104
            port=int(number("PORT", 8080)),
            status_port=int(number("STATUS_PORT", 8081)),
            share_port=text("SHARE_PORT", "false").lower() == "true",
            routes_file=path("ROUTES_FILE"),
            keys_folder=path("KEYS_FOLDER"),
            address=text("ADDRESS", ""),
            door_url=environment.get("FINETUNE_GATEWAY_DOOR_URL") or None,
            door_token_file=path("DOOR_TOKEN_FILE"),
            door_ca_file=path("DOOR_CA_FILE"),
            observations_file=path("OBSERVATIONS_FILE"),
            body_bytes=int(number("BODY_BYTES", 4 * 1024 * 1024)),
            concurrency=int(number("CONCURRENCY", 256)),
            timeout_seconds=number("TIMEOUT_SECONDS", 120.0),
            body_timeout_seconds=number("BODY_TIMEOUT_SECONDS", 30.0),
            heartbeat_seconds=number("HEARTBEAT_SECONDS", 15.0),
            drain_seconds=number("DRAIN_SECONDS", 30.0),
            allowed_origins=frozenset(text("ALLOWED_ORIGINS", "").split()),
            access_log=text("ACCESS_LOG", "true").lower() == "true",
        )
