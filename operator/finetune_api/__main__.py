"""Write the CustomResourceDefinitions: `python -m finetune_api FOLDER` (one JSON-compatible YAML file each)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from finetune_api.crd import RESOURCES, custom_resource_definition


def main(*, folder: Path) -> None:
    """Write one file per resource into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for resource in RESOURCES:
        manifest = custom_resource_definition(resource=resource)
        (folder / f"{resource.plural}.yaml").write_text(to_yaml(manifest))


def to_yaml(manifest: object) -> str:
    """YAML of plain data. JSON strings are valid YAML scalars, so no library is needed to write it."""
    return "# Generated from operator/finetune_api by `make generate`; do not edit.\n" + _yaml(manifest, 0).lstrip("\n")


def _yaml(value: object, depth: int) -> str:
    indent = "\n" + "  " * depth
    if isinstance(value, dict) and value:
        return "".join(f"{indent}{_key(key)}:{_yaml(item, depth + 1)}" for key, item in value.items())
    if isinstance(value, list) and value:
        return "".join(f"{indent}- {_yaml(item, depth + 1).lstrip()}" for item in value)
    return " " + json.dumps(value)


def _key(key: str) -> str:
    # YAML 1.1, which kubectl reads, takes a bare `n` for false.
    plain = key.replace("-", "").isalnum() and key.lower() not in {"y", "n", "yes", "no", "on", "off", "true", "false"}
    return key if plain else json.dumps(key)


if __name__ == "__main__":
    main(folder=Path(sys.argv[1]))
