"""`finetune get`: objects as a table, JSON, YAML or names."""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime

import yaml

from finetune_api import GROUP
from finetune_operator.cli.columns import resource_of, resource_part
from finetune_operator.cli.errors import CommandError, ExitStatus
from finetune_operator.cli.target import Target, open_target
from finetune_operator.core.ports import Kind, Manifest


async def run(options: argparse.Namespace) -> int:
    """Print the objects."""
    resource = resource_of(options.kind)
    kind = resource.kind
    async with open_target(options) as target:
        found = await _objects(target, kind=kind, options=options)
    if options.output in ("json", "yaml"):
        one = len(options.names) == 1
        shown = found[0] if one else {"apiVersion": "v1", "kind": "List", "items": found}
        print(_dump(shown, output=options.output), end="")
    elif options.output == "name":
        for manifest in found:
            print(f"{kind.lower()}.{GROUP}/{manifest['metadata']['name']}")
    elif not found:
        where = "" if options.all_namespaces else f" in {target.namespace} namespace"
        print(f"No resources found{where}.", file=sys.stderr)
    else:
        part = resource_part(
            found,
            resource=resource,
            wide=options.output == "wide",
            with_namespace=options.all_namespaces,
            now=datetime.now(UTC),
        )
        print(part.text)
    return ExitStatus.DONE


async def _objects(target: Target, *, kind: Kind, options: argparse.Namespace) -> list[Manifest]:
    if options.names:
        if options.all_namespaces:
            raise CommandError("a name is one of a namespace: use -n instead of -A")
        return [await target.read(kind=kind, name=name) for name in options.names]
    namespace = None if options.all_namespaces else target.namespace
    return await target.cluster.list(kind=kind, namespace=namespace, labels=_labels(options.selector))


def _labels(selector: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in selector.split(",") if part]
    if any(not separator or not key for key, separator, _ in pairs):
        raise CommandError(f"--selector {selector}: expected key=value,...")
    return {key.strip(): value.strip().lstrip("=") for key, _, value in pairs}


def _dump(value: object, *, output: str) -> str:
    if output == "json":
        return json.dumps(value, indent=4) + "\n"
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
