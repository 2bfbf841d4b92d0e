"""Secrets of local mode: a file of KEY=VALUE lines that only its owner can read."""

from __future__ import annotations

import base64
import re
from pathlib import Path

from finetune_operator.core.ports import InvalidError, Manifest

_KEY = re.compile(r"[-._a-zA-Z0-9]{1,253}")
"""What the apiserver takes as a key of a Secret."""


def secret_manifest(*, path: Path, namespace: str, name: str) -> Manifest | None:
    """The file as a Secret, None where there is none. Raises InvalidError, with the line's number and not its text."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise InvalidError(f"{path} is not UTF-8: write KEY=VALUE lines as text") from error
    data = {key: base64.b64encode(value.encode()).decode() for key, value in _lines(text, path=path)}
    metadata = {"name": name, "namespace": namespace, "uid": f"secret-{name}", "resourceVersion": "0"}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data}


def _lines(text: str, *, path: Path) -> list[tuple[str, str]]:
    pairs = []
    for number, line in enumerate(text.split("\n"), start=1):
        content = line.strip().removeprefix("export ")
        if not content or content.startswith("#"):
            continue
        key, separator, value = content.partition("=")
        if not separator or _KEY.fullmatch(key.strip()) is None or key.strip() in (".", ".."):
            raise InvalidError(f"{path} line {number}: expected KEY=VALUE; a key has letters, digits, `-`, `_` and `.`")
        value = value.strip()
        if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        pairs.append((key.strip(), value))
    return pairs
