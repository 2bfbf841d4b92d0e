"""Manifests word for word as recorded in tests/data/golden."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "golden"
UPDATE = "FINETUNE_UPDATE_GOLDEN"


class _Readable(yaml.SafeDumper):
    """Texts of several lines as blocks, so that a difference in one line shows as one line. No anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        """Every part in full."""
        return True


_Readable.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def check(name: str, manifests: Any) -> None:
    """Compare with the golden file, or write it where that is asked for."""
    path = GOLDEN / f"{name}.yaml"
    text = yaml.dump_all(manifests, Dumper=_Readable, sort_keys=False, width=120)
    if os.environ.get(UPDATE):
        path.write_text(text)
    assert text == path.read_text(), f"{path.name} differs; if that is meant: {UPDATE}=1 pytest, and read it"
