"""ModelEndpoints in the reconcile loop: observe one, decide (endpoint/, pure), show what came of it."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ValidationError

from finetune_api.modelendpoint import ModelEndpoint, ModelEndpointStatus
from finetune_operator.core.conditions import Summary
from finetune_operator.core.controller import Event, Look, Surroundings
from finetune_operator.core.ownership import is_owned
from finetune_operator.core.ports import Key, Manifest
from finetune_operator.core.reasons import Reason
from finetune_operator.core.status_writing import key_of, merged, readable_status, unreadable
from finetune_operator.endpoint.decide import decide
from finetune_operator.endpoint.finish import held
from finetune_operator.endpoint.metrics import EndpointMetrics
from finetune_operator.endpoint.names import SERVER_PORT
from finetune_operator.endpoint.observe import observe_endpoint
from finetune_operator.endpoint.serving.manifests import vllm_image


@dataclass(frozen=True, kw_only=True)
class EndpointController:
    """See controller.Controller."""

    around: Surroundings
    metrics: EndpointMetrics

    async def look(self, *, manifest: Manifest) -> Look:
        """Observe and decide. A spec that this operator cannot read is left to a newer one."""
        try:
            endpoint = ModelEndpoint.from_object(manifest)
        except ValidationError as error:
            summary = Summary(state="Stalled", reason=Reason.NOT_SUPPORTED, message=unreadable(error))
            return self.hold(manifest=manifest, summary=summary)
        if (lack := self._lack(endpoint)) is not None:
            return self.hold(manifest=manifest, summary=lack)
        observed = await observe_endpoint(
            cluster=self.around.cluster,
            endpoint=endpoint,
            now=self.around.clock(),
            config=self.around.config,
            observations=self.around.observations,
            door=self.around.door(),
            server_url=self.around.server_url or self._by_setting,
        )
        decision = decide(observed)
        status = decision.status
        self.around.observations.counts_matter(
            namespace=endpoint.metadata.namespace,
            endpoint=endpoint.metadata.name,
            matter=(status or endpoint.status).step is not None,
        )
        return Look(
            delete=decision.delete,
            create=decision.create,
            apply=decision.apply,
            status=merged(manifest, status) if status is not None else None,
            events=decision.events,
            requeue_seconds=decision.requeue_seconds,
            afterwards=lambda: self.metrics.show(
                key=key_of(manifest), status=status or endpoint.status, now=self.around.clock()
            ),
        )

    def _lack(self, endpoint: ModelEndpoint) -> Summary | None:
        """Which image the operator would need for the endpoint and does not have."""
        if not self.around.config.gateway_image:
            message = "the operator has no gateway image; set FINETUNE_GATEWAY_IMAGE in its Deployment"
            return Summary(state="Stalled", reason=Reason.NO_GATEWAY_IMAGE, message=message)
        if endpoint.spec.serving.runtime == "VLLM" and not vllm_image(endpoint, self.around.config):
            where, variable = ("", "IMAGE") if endpoint.spec.serving.gpus else (" without GPUs", "CPU_IMAGE")
            needed = f"set FINETUNE_VLLM_{variable} in its Deployment"
            message = f"the operator has no image for runtime VLLM{where}; {needed}"
            return Summary(state="Stalled", reason=Reason.NO_VLLM_IMAGE, message=message)
        return None

    def _by_setting(self, namespace: str, service: str) -> str:
        return self.around.config.server_url.format(service=service, namespace=namespace, port=SERVER_PORT)

    def hold(self, *, manifest: Manifest, summary: Summary) -> Look:
        """The conditions that say why nothing can be done now; nothing is said twice."""
        before = readable_status(manifest, ModelEndpointStatus)
        generation = manifest["metadata"].get("generation", 0)
        after = held(status=before, summary=summary, generation=generation, now=self.around.clock())
        if after.to_dict() == before.to_dict():
            return Look()
        event = Event(type="Warning", reason=summary.reason, message=summary.message)
        return Look(status=merged(manifest, after), events=(event,))

    def gone(self, *, key: Key) -> None:
        """Its gauges and reports go with it."""
        self.metrics.forget(key=key)
        self.around.observations.forget(namespace=key.namespace, endpoint=key.name)

    def owns(self, *, manifest: Manifest, child: Manifest) -> bool:
        """Every child of an endpoint is owned."""
        return is_owned(child, uid=manifest["metadata"]["uid"])
