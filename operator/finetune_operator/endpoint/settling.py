"""Whether a child is as it should be, and what to do where somebody changed it.

What was applied is told by a hash on the object, never by comparing values: the apiserver writes quantities in its own
way, fills in defaults, and admission may change what it likes. What others changed since then is told by
metadata.managedFields: a change of a value takes the field from whoever applied it. It is put back at once the first
time, and with growing pauses where somebody keeps changing it; both are recorded on the object itself. What admission
made of a field while it was applied leaves the field ours: applying it again would change nothing, so it is only said.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from finetune_api import GROUP
from finetune_operator.core.ports import FIELD_MANAGER, Manifest
from finetune_operator.core.quantities import amount
from finetune_operator.core.times import parse_time, whole_second

APPLIED_ANNOTATION = f"{GROUP}/applied"
PUT_BACK_ANNOTATION = f"{GROUP}/put-back"
_FIRST_PAUSE_SECONDS = 15.0
_LONGEST_PAUSE_SECONDS = 600.0
_IDENTITY = frozenset({"apiVersion", "kind"})
_METADATA = frozenset({"name", "namespace", "uid"})
Path = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Settling:
    """What to do about one child now."""

    apply: Manifest | None = None
    """With the UID of the object that was seen; without one where there was none."""
    contested: str | None = None
    """Who changed what of it, where that was not long ago."""
    look_again: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class _PutBack:
    """The last time that others' changes were undone."""

    times: int
    at: datetime
    by: str
    what: str

    @property
    def pause(self) -> timedelta:
        """How long a further change is left alone."""
        return timedelta(seconds=min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 4.0 ** min(self.times - 1, 8)))

    @property
    def forgotten(self) -> datetime:
        """When the quarrel counts as over, if nobody has changed anything again."""
        return self.at + 2 * self.pause


def settled(
    *, wanted: Manifest, live: Manifest | None, now: datetime, content: object = None, same: bool | None = None
) -> Settling:
    """What the child needs. `live`: the object that was found and proven ours; None: there is none of this name.

    `content`: what the stamp is made of, where `wanted` counts how often it was written; `same`: whether the live
    object says that, where it is not told field by field.
    """
    stamp = hashlib.sha256(json.dumps(content or wanted, sort_keys=True).encode()).hexdigest()[:16]
    if live is None:
        return Settling(apply=_stamped(wanted, live=None, notes={APPLIED_ANNOTATION: stamp}))
    annotations = live["metadata"].get("annotations") or {}
    last = _put_back(annotations.get(PUT_BACK_ANNOTATION))
    last = last if last is not None and now < last.forgotten else None
    if annotations.get(APPLIED_ANNOTATION) != stamp and not same:
        # Another stamp: something else is wanted now. None, right after we wrote one: somebody removes it.
        taken = None if APPLIED_ANNOTATION in annotations else _last_applied(live)
        if taken is not None and now < taken + timedelta(seconds=_FIRST_PAUSE_SECONDS):
            return Settling(look_again=taken + timedelta(seconds=_FIRST_PAUSE_SECONDS))
        return Settling(apply=_stamped(wanted, live=live, notes={APPLIED_ANNOTATION: stamp}))
    whole = [] if same else [(("data",), False)]
    found = sorted(differences(wanted=wanted, live=live) if same is None else whole)
    changed, bent = [path for path, ours in found if not ours], [path for path, ours in found if ours]
    if not changed:
        words = _words(live, by=last.by, what=last.what) if last is not None else _bent(live, paths=bent)
        return Settling(contested=words, look_again=last.forgotten if last is not None else None)
    by, what = _who(live, paths=changed), _named(changed)
    words = _words(live, by=by, what=what)
    if last is not None and now < last.at + last.pause:
        return Settling(contested=words, look_again=last.at + last.pause)
    note = {
        "times": (last.times if last is not None else 0) + 1,
        "at": whole_second(now).isoformat(),
        "by": by,
        "what": what,
    }
    notes = {APPLIED_ANNOTATION: stamp, PUT_BACK_ANNOTATION: json.dumps(note)}
    return Settling(apply=_stamped(wanted, live=live, notes=notes), contested=words)


def differences(*, wanted: Manifest, live: Manifest) -> Iterator[tuple[Path, bool]]:
    """Fields of which the live object does not say what was applied, and whether they are ours all the same: somebody
    has changed or removed what is not, and admission has changed, as it was applied, what is."""
    metadata = {key: value for key, value in wanted["metadata"].items() if key not in _METADATA}
    rest = {key: value for key, value in wanted.items() if key not in _IDENTITY}
    return _compared({**rest, "metadata": metadata}, live, _our_fields(live), ())


def covers(*, live: Any, wanted: Any) -> bool:
    """Whether an object says all that is wanted. What the apiserver or others added does not count."""
    if live == wanted:
        return True
    if isinstance(wanted, dict):
        return isinstance(live, dict) and all(covers(live=live.get(key), wanted=value) for key, value in wanted.items())
    if isinstance(wanted, list):
        same = isinstance(live, list) and len(live) == len(wanted)
        return same and all(covers(live=one, wanted=other) for one, other in zip(live, wanted, strict=True))
    return (live is None and wanted in ("", 0, False)) or (amount(wanted) == amount(live) is not None)


# -- FieldsV1: `f:NAME` is a field, `k:{...}` an element of a list by its keys, `v:VALUE` a member of a set ------------


def _compared(wanted: Any, live: Any, fields: Mapping[str, Any], path: Path) -> Iterator[tuple[Path, bool]]:
    if wanted == live:
        return
    if isinstance(wanted, dict):
        for key, value in wanted.items():
            there = live.get(key) if isinstance(live, dict) else None
            own = fields.get(f"f:{key}")
            if own or (isinstance(value, dict) and isinstance(there, dict)):
                yield from _compared(value, there, own or {}, (*path, key))
            elif not covers(live=there, wanted=value):
                # {} is a leaf or a list that is ours, or a map of which nothing else is left to us
                yield (*path, key), own is not None and not isinstance(value, dict)
    elif isinstance(wanted, list):
        elements = {key: own for key, own in fields.items() if key.startswith("k:")}
        for value in wanted if elements and all(isinstance(each, dict) for each in wanted) else ():
            keys, own = next(
                ((keys, own) for text, own in elements.items() if _names(keys := json.loads(text[2:]), value)),
                (None, None),
            )
            there = next((each for each in live or () if keys and _names(keys, each)), None)
            word = str(value[next(key for key in keys if key in value)] if keys else value.get("name", "..."))
            if own is None and not any(covers(live=each, wanted=value) for each in live or ()):
                yield (*path, word), False
            elif own:
                yield from _compared(value, there, own, (*path, word))


def _names(keys: Mapping[str, Any], element: Mapping[str, Any]) -> bool:
    """Whether these are the keys of a list's element. Those that it does not say have their defaults."""
    said = [key for key in keys if key in element]
    return bool(said) and all(element[key] == keys[key] for key in said)


def _our_fields(live: Manifest) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for entry in _entries(live):
        if entry.get("manager") == FIELD_MANAGER:
            found = _union(found, entry.get("fieldsV1") or {})
    return found


def _union(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return one | {key: _union(one.get(key, {}), value) for key, value in other.items()}


def _entries(live: Manifest) -> list[dict[str, Any]]:
    """Who manages what, newest first."""
    entries = live["metadata"].get("managedFields") or ()
    return sorted(entries, key=lambda each: str(each.get("time", "")), reverse=True)


def _last_applied(live: Manifest) -> datetime | None:
    return next((parse_time(each.get("time")) for each in _entries(live) if each.get("manager") == FIELD_MANAGER), None)


def _who(live: Manifest, *, paths: list[Path]) -> str:
    """The field managers that have these fields now, or else whoever wrote last."""
    others = [each for each in _entries(live) if each.get("manager") != FIELD_MANAGER]
    having = [each for each in others if any(_has(each.get("fieldsV1") or {}, path) for path in paths)]
    names = dict.fromkeys(str(each["manager"]) for each in having or others[:1] if each.get("manager"))
    return ", ".join(names) or "somebody"


def _has(fields: Mapping[str, Any], path: Path) -> bool:
    """Whether a manager has a field, as far as its path tells: elements of lists are named by one of their keys."""
    for word in path:
        step = next((own for key, own in fields.items() if key == f"f:{word}" or f'"{word}"' in key), None)
        if step is None:
            return False
        fields = step
    return True


# -- what is written -------------------------------------------------------------------------------------------------


def _stamped(wanted: Manifest, *, live: Manifest | None, notes: Mapping[str, str]) -> Manifest:
    metadata = wanted["metadata"]
    annotations = {**(metadata.get("annotations") or {}), **notes}
    uid = {"uid": live["metadata"]["uid"]} if live is not None else {}
    return {**wanted, "metadata": {**metadata, **uid, "annotations": annotations}}


def _put_back(text: str | None) -> _PutBack | None:
    try:
        note = json.loads(text or "")
        at = parse_time(note["at"])
        return None if at is None else _PutBack(times=int(note["times"]), at=at, by=note["by"], what=note["what"])
    except (ValueError, KeyError, TypeError):
        return None


def _named(paths: list[Path]) -> str:
    return ", ".join(".".join(path) for path in paths[:3])


def _bent(live: Manifest, *, paths: list[Path]) -> str | None:
    if not paths:
        return None
    return (
        f"{live['kind']} {live['metadata']['name']}: a mutating policy or webhook changed {_named(paths)} as it was "
        "applied; it is left so: exempt the object there, or write into the ModelEndpoint what the policy wants"
    )


def _words(live: Manifest, *, by: str, what: str) -> str:
    return (
        f"{live['kind']} {live['metadata']['name']}: {by} changed {what}; it is put back, with growing pauses while "
        "that goes on: change the ModelEndpoint in its place"
    )
