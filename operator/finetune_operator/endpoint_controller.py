"""ModelEndpoints in the reconcile loop: observe one, decide (endpoint/, pure), show what came of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from finetune_api.modelendpoint import ModelEndpoint, ModelEndpointStatus
from finetune_operator.config import OperatorConfig
from finetune_operator.controller import Event, Look, State
from finetune_operator.endpoint.decide import decide
from finetune_operator.endpoint.finish import held
from finetune_operator.endpoint.names import SERVER_PORT
from finetune_operator.metrics import Metrics
from finetune_operator.observe_endpoint import ServerUrl, observe_endpoint
from finetune_operator.ownership import is_owned
from finetune_operator.ports import Clock, Cluster, Door, Key, Manifest, ObservationSource

_STATUS_FIELDS = frozenset(field.alias or name for name, field in ModelEndpointStatus.model_fields.items())


class EndpointController:
    """See controller.Controller."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        config: OperatorConfig,
        observations: ObservationSource,
        clock: Clock,
        metrics: Metrics,
        door: Callable[[], Door | None],
        server_url: ServerUrl | None = None,
    ) -> None:
        self._cluster = cluster
        self._config = config
        self._observations = observations
        self._clock = clock
        self._metrics = metrics
        self._door = door
        self._server_url = server_url or self._by_setting

    async def look(self, *, manifest: Manifest) -> Look:
        """Observe and decide. A spec that this operator cannot read is left to a newer one."""
        try:
            endpoint = ModelEndpoint.from_object(manifest)
        except ValidationError as error:
            return self.hold(manifest=manifest, state="Stalled", reason="NotSupported", message=_words(error))
        if not self._config.gateway_image:
            message = "the operator has no gateway image; set FINETUNE_GATEWAY_IMAGE in its Deployment"
            return self.hold(manifest=manifest, state="Stalled", reason="NoGatewayImage", message=message)
        if endpoint.spec.serving.runtime == "VLLM" and not self._config.vllm_image:
            message = "the operator has no image for runtime VLLM; set FINETUNE_VLLM_IMAGE in its Deployment"
            return self.hold(manifest=manifest, state="Stalled", reason="NoVllmImage", message=message)
        observed = await observe_endpoint(
            cluster=self._cluster,
            endpoint=endpoint,
            now=self._clock(),
            config=self._config,
            observations=self._observations,
            door=self._door(),
            server_url=self._server_url,
        )
        decision = decide(observed)
        status = decision.status
        self._observations.counts_matter(
            namespace=endpoint.metadata.namespace,
            endpoint=endpoint.metadata.name,
            matter=(status or endpoint.status).step is not None,
        )
        return Look(
            delete=decision.delete,
            create=decision.create,
            apply=decision.apply,
            status=_merged(manifest, status) if status is not None else None,
            events=decision.events,
            requeue_seconds=decision.requeue_seconds,
            afterwards=lambda: self._metrics.endpoints.show(key=_key_of(manifest), status=status or endpoint.status),
        )

    def _by_setting(self, namespace: str, service: str) -> str:
        return self._config.server_url.format(service=service, namespace=namespace, port=SERVER_PORT)

    def hold(self, *, manifest: Manifest, state: State, reason: str, message: str) -> Look:
        """The conditions that say why nothing can be done now; nothing is said twice."""
        before = _readable_status(manifest)
        after = held(
            status=before,
            state=state,
            reason=reason,
            message=message,
            generation=manifest["metadata"].get("generation", 0),
            now=self._clock(),
        )
        if after.to_dict() == before.to_dict():
            return Look()
        return Look(status=_merged(manifest, after), events=(Event(type="Warning", reason=reason, message=message),))

    def gone(self, *, key: Key) -> None:
        """Its gauges and reports go with it."""
        self._metrics.endpoints.forget(key=key)
        self._observations.forget(namespace=key.namespace, endpoint=key.name)

    def owns(self, *, manifest: Manifest, child: Manifest) -> bool:
        """Every child of an endpoint is owned."""
        return is_owned(child, uid=manifest["metadata"]["uid"])


def _key_of(manifest: Manifest) -> Key:
    metadata = manifest["metadata"]
    return Key(kind="ModelEndpoint", namespace=metadata["namespace"], name=metadata["name"])


def _merged(manifest: Manifest, status: ModelEndpointStatus) -> dict[str, Any]:
    """The new status, with what a newer operator has written there and this one does not know."""
    unknown = {name: value for name, value in (manifest.get("status") or {}).items() if name not in _STATUS_FIELDS}
    return unknown | status.to_dict()


def _readable_status(manifest: Manifest) -> ModelEndpointStatus:
    try:
        return ModelEndpointStatus.model_validate(manifest.get("status") or {})
    except ValidationError:
        return ModelEndpointStatus()


def _words(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}; this version of the operator cannot read it, a newer one may"
