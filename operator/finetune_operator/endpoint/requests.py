"""What people ask for by annotation (api.md): level-triggered, and void for any version but the one that is named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from finetune_api.modelendpoint import APPROVE, PAUSE, REJECT, REQUESTED_BY, ROLLBACK


@dataclass(frozen=True, kw_only=True)
class Requests:
    """The annotations of one endpoint."""

    approve: str = ""
    """UID of the version meant; "": none."""
    reject: str = ""
    rollback: str = ""
    pause: bool = False
    by: str = ""

    @property
    def who(self) -> str:
        """Who asked, for the record."""
        return self.by or "a user"


def read_requests(annotations: Mapping[str, str]) -> Requests:
    """What is asked for now."""
    return Requests(
        approve=annotations.get(APPROVE, "").strip(),
        reject=annotations.get(REJECT, "").strip(),
        rollback=annotations.get(ROLLBACK, "").strip(),
        pause=annotations.get(PAUSE, "").strip().lower() == "true",
        by=annotations.get(REQUESTED_BY, "").strip(),
    )
