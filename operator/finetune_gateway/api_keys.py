"""Who a client is, by the key that it shows."""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

logger = logging.getLogger(__name__)
ANONYMOUS = "anonymous"
_READ_AGAIN_SECONDS = 5.0


@dataclass(kw_only=True)
class ApiKeys:
    """The clients' keys from a mounted Secret, read again as it changes."""

    folder: Path | None
    _keys: dict[bytes, str] = field(default_factory=dict)
    _read_at: float = float("-inf")

    def client(self, headers: Mapping[str, str]) -> str | None:
        """The client's name; None for a key that is not known. Everybody is `anonymous` where no keys are set.

        `Authorization: Bearer KEY` with the scheme in any case (RFC 9110, 11.1), or `api-key: KEY`, as clients of Azure
        send it.
        """
        if self.folder is None:
            return ANONYMOUS
        self._refresh(self.folder)
        scheme, _, credentials = headers.get("Authorization", "").strip().partition(" ")
        offered = (credentials if scheme.lower() == "bearer" else "", headers.get("api-key", ""))
        found = None
        for shown in (each.strip().encode("utf-8", "surrogateescape") for each in offered):
            for key, name in self._keys.items():
                if hmac.compare_digest(key, shown):
                    found = name
        return found

    def _refresh(self, folder: Path) -> None:
        now = time.monotonic()
        if now - self._read_at < _READ_AGAIN_SECONDS:
            return
        self._read_at = now
        try:
            read = {path.read_bytes().strip(): path.name for path in folder.iterdir() if _is_key(path)}
        except OSError as error:  # a file that goes while it is read: the next look sees what is there
            logger.warning("the clients' keys cannot be read: %s; those known stay", error)
            return
        self._keys = {key: name for key, name in read.items() if key}


def _is_key(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".")
