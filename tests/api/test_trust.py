"""The door's authority in a real Secret, shared by replicas."""

from __future__ import annotations

import asyncio
import base64
from datetime import UTC, datetime, timedelta

import pytest
from tests.api.client import open_api
from tests.harness import ApiServer

from finetune_operator.kube import trust as trust_module
from finetune_operator.kube.certificates import AUTHORITY_LIFETIME, SUCCESSION_AHEAD, SUCCESSOR_AHEAD, Authority
from finetune_operator.kube.doorway import DoorSettings, Doorway
from finetune_operator.kube.trust import NAME, Trust


async def test_made_once_and_found_again(apiserver: ApiServer, namespace: str) -> None:
    async with open_api(apiserver) as api:
        first = await Trust(api=api, namespace=namespace).ensure()
        again = await Trust(api=api, namespace=namespace).ensure()
    assert again == first
    published = apiserver.kubectl.get("configmap", NAME, namespace=namespace)
    assert published["data"] == {"ca.crt": first.bundle}
    assert "PRIVATE KEY" not in str(published)


async def test_replicas_that_start_together_agree(apiserver: ApiServer, namespace: str) -> None:
    async with open_api(apiserver) as api:
        authorities = await asyncio.gather(*(Trust(api=api, namespace=namespace).ensure() for _ in range(5)))
    assert len(set(authorities)) == 1


async def test_a_looming_end_is_announced_and_then_taken_over(
    apiserver: ApiServer, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ensure_at(now: datetime) -> Authority:
        class Clock(datetime):
            @classmethod
            def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
                return now

        monkeypatch.setattr(trust_module, "datetime", Clock)
        return await Trust(api=api, namespace=namespace).ensure()

    start = datetime.now(UTC)
    async with open_api(apiserver) as api:
        first = await ensure_at(start)
        announced = await ensure_at(start + AUTHORITY_LIFETIME - SUCCESSOR_AHEAD + timedelta(days=1))
        succeeded = await ensure_at(start + AUTHORITY_LIFETIME - SUCCESSION_AHEAD + timedelta(days=1))
    assert announced.current == first.current
    assert succeeded.current == announced.successor
    assert apiserver.kubectl.get("configmap", NAME, namespace=namespace)["data"]["ca.crt"] == succeeded.bundle


@pytest.mark.parametrize("data", [{}, {"tls.crt": "nonsense", "tls.key": "nonsense"}])
async def test_a_secret_that_somebody_spoilt_is_replaced(
    apiserver: ApiServer, namespace: str, data: dict[str, str]
) -> None:
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": NAME}, "data": encoded}
    apiserver.kubectl.create(secret, namespace=namespace)
    async with open_api(apiserver) as api:
        made = await Trust(api=api, namespace=namespace).ensure()
        assert await Trust(api=api, namespace=namespace).ensure() == made


async def test_the_leader_is_where_the_service_leads(apiserver: ApiServer, namespace: str) -> None:
    async with open_api(apiserver) as api:
        for address in ("10.244.0.7", "10.244.1.9"):
            settings = DoorSettings(namespace=namespace, address=address, host="127.0.0.1", port=8443)
            doorway = Doorway(api=api, settings=settings)
            await doorway._publish()
            slices = apiserver.kubectl.list("endpointslices", namespace=namespace)
            assert [(item["endpoints"], item["ports"]) for item in slices] == [
                (
                    [{"addresses": [address], "conditions": {"ready": True}}],
                    [{"name": "https", "port": 8443, "protocol": "TCP"}],
                )
            ]
    assert slices[0]["metadata"]["labels"]["kubernetes.io/service-name"] == "finetune-door"
