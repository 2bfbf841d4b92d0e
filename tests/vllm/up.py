"""`finetune up` on a machine that has what local mode refuses: vLLM. Servers are processes of container.py."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.vllm import container

from finetune_operator.cli import up
from finetune_operator.cli.__main__ import main
from finetune_operator.local.environment import ContainerBuilder

_CPUS = "2"
_RUN, _CACHE = "/etc/finetune", "/var/cache/finetune"


class WithVllm(ContainerBuilder):
    """Knows vLLM's command, and what a limit is."""

    def command(self, *, mounts: Mapping[str, Path]) -> list[str]:
        """Of an adapter too, which is named `NAME=PATH`."""
        words = super().command(mounts=mounts)
        if words[0] != "vllm":
            return words
        here = [word.replace(f"={_CACHE}/", f"={mounts[_CACHE]}/") for word in words]
        return [sys.executable, container.__file__, f"{mounts[_RUN]}/run.json", *here]

    async def _value(self, entry: Mapping[str, Any]) -> str:
        return _CPUS if "resourceFieldRef" in entry.get("valueFrom", {}) else await super()._value(dict(entry))


if __name__ == "__main__":
    from finetune_operator.local import pods

    pods.ContainerBuilder = WithVllm  # type: ignore[misc]
    up.endpoint_obstacles = lambda *_, **__: iter(())
    sys.exit(main())
