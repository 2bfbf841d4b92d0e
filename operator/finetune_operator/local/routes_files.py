"""What the volume of a ConfigMap is to a pod, for gateways: the routes as a file that changes with the object."""

from __future__ import annotations

import json

from finetune_api.routes import ROUTES_KEY
from finetune_operator.endpoint.names import routes_name
from finetune_operator.job.names import ENDPOINT_LABEL
from finetune_operator.local.files import write_json
from finetune_operator.local.home import LocalHome
from finetune_operator.ports import Manifest


def write_routes(config_map: Manifest, *, home: LocalHome) -> None:
    """Write an endpoint's routes where its gateway follows them; any other ConfigMap is no concern of it."""
    metadata = config_map["metadata"]
    endpoint = (metadata.get("labels") or {}).get(ENDPOINT_LABEL)
    if endpoint is None or metadata["name"] != routes_name(endpoint):
        return
    text = (config_map.get("data") or {}).get(ROUTES_KEY)
    if text is not None:
        write_json(home.routes(namespace=metadata["namespace"], endpoint=endpoint), json.loads(text))
