"""Which field of the job a refusal is about. What refuses knows a URI, a source or the base model, not the job."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from finetune_api.run import PrepareRun
from finetune_trainer.process.errors import StageError

_NAMED = re.compile(r"(model|data|method|training|compute|evaluation|artifacts)\.[\w.\[\]]+: ")


@contextmanager
def naming_fields(run: PrepareRun) -> Iterator[None]:
    """The message of a StageError begins with the field that is meant, and its value."""
    try:
        yield
    except StageError as error:
        error.message = with_field(error.message, run=run)
        raise


def with_field(message: str, *, run: PrepareRun) -> str:
    """The message, with the field in front where it names none and one can be told."""
    if _NAMED.match(message):
        return message
    named = {f"data.sources[{number}].uri": each for number, each in enumerate(run.sources)}
    if run.evaluation_dataset is not None:
        named["evaluation.dataset.uri"] = run.evaluation_dataset
    uris = {"model.uri": run.model.uri, **{field: each.uri for field, each in named.items()}}
    # What lies under a place of the run's own is nobody's field, also where a source is a folder around it.
    places = {uri.rstrip("/"): "" for uri in (run.locations.run, run.locations.cache)}
    places |= {uri.rstrip("/"): field for field, uri in reversed(uris.items())}
    any_of = "|".join(re.escape(uri) for uri in sorted(places, key=len, reverse=True))
    found = [uri for uri in re.findall(rf"({any_of})(?![\w%~+-]|\.\w)", message) if places[uri]]
    if found:
        return f"{places[found[0]]}: {message}"
    about = [field for field, each in named.items() if message.startswith(f"source {each.name}:")]
    about += ["model.uri"] if "base model" in message else []
    return f"{about[0]}: {uris[about[0]]}: {message}" if about else message
