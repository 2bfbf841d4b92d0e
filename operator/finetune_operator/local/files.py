"""Files that are whole or not there, and the reports that processes leave in them."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

Report = TypeVar("Report", bound=BaseModel)


def write_json(path: Path, content: Any) -> None:
    """Write a file so that a reader, also after a power cut, sees the old content or all of the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            json.dump(content, stream, indent=1)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> Any:
    """The content of a file, None where there is none or it is not (yet) JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def read_report(path: Path, form: type[Report]) -> tuple[Report, datetime] | None:
    """The report in a file and when it was written; None where there is none, or it is none."""
    try:
        return form.model_validate_json(path.read_bytes()), datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except (OSError, ValidationError):
        return None
