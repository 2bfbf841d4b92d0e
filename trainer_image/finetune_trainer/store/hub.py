"""The hub of models and data sets: a revision is pinned to its commit, and only what is safe to load is fetched."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from finetune_api.panics import as_exception
from finetune_api.results import ExitCode
from finetune_trainer.process.errors import StageError, bad_configuration, not_found

log = logging.getLogger(__name__)

# Weights as safetensors; configuration, tokenizer, licence as text. Never pickle (.bin, .pt) and never code (.py).
LOADABLE = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.spm", "README.md", "LICENSE*", "LICENCE*")


@dataclass(frozen=True, kw_only=True)
class HubModel:
    """A repository of the hub at one commit."""

    repository: str
    commit: str


def resolve(*, uri: str, revision: str | None) -> HubModel:
    """The commit that a revision (default: the main branch) names now.

    Raises StageError: 66 where the hub does not know it or keeps it closed, 70 where the hub does not answer.
    """
    from huggingface_hub import HfApi

    repository = uri.removeprefix("hf://").strip("/")
    if repository.count("/") != 1:
        raise bad_configuration("BadUri", f"{uri}: a model of the hub is written hf://ORGANISATION/NAME")
    with _hub_errors(uri, revision):
        info = HfApi(endpoint=_endpoint()).model_info(repository, revision=revision)
    if info.sha is None:
        raise not_found(f"{uri}: the hub names no commit for revision {revision or 'main'}")
    return HubModel(repository=repository, commit=info.sha)


def download(model: HubModel, *, into: Path) -> None:
    """Fetch the loadable files of the repository's top folder into an empty folder. Raises StageError as `resolve`."""
    from huggingface_hub import snapshot_download

    with _hub_errors(f"hf://{model.repository}", model.commit):
        snapshot_download(
            model.repository,
            revision=model.commit,
            local_dir=into,
            allow_patterns=list(LOADABLE),
            ignore_patterns=["*/*"],
            endpoint=_endpoint(),
        )
    shutil.rmtree(into / ".cache", ignore_errors=True)


def download_dataset(uri: str, *, into: Path, suffixes: Sequence[str]) -> tuple[Path, list[str]]:
    """Fetch the files of `hf://datasets/ORGANISATION/NAME[@REVISION][/PATH]` that end as data does: where they lie, and
    the names of the others there.

    `into` is an empty folder. Raises StageError as `resolve`.
    """
    from huggingface_hub import HfApi, snapshot_download

    kind, organisation, name, *path = [*uri.removeprefix("hf://").strip("/").split("/"), "", ""]
    inside = "/".join(part for part in path if part)
    if kind != "datasets" or not organisation or not name:
        raise bad_configuration("BadUri", f"{uri}: a data set of the hub is written hf://datasets/ORGANISATION/NAME")
    name, _, revision = name.partition("@")
    repository = f"{organisation}/{name}"
    patterns = [f"*{suffix}{packed}" for suffix in suffixes for packed in ("", ".gz")]
    with _hub_errors(uri, revision):
        info = HfApi(endpoint=_endpoint()).dataset_info(repository, revision=revision or None)
        log.info("%s is at commit %s", uri, info.sha)
        snapshot_download(
            repository,
            repo_type="dataset",
            revision=info.sha,
            local_dir=into,
            allow_patterns=[inside, *(f"{inside}/{pattern}" for pattern in patterns)] if inside else patterns,
            endpoint=_endpoint(),
        )
    shutil.rmtree(into / ".cache", ignore_errors=True)
    if not (into / inside).exists():
        raise not_found(f"{uri}: the data set has no {inside}")
    there = (PurePosixPath(each.rfilename) for each in info.siblings or ())
    below = (
        name.relative_to(inside) for name in there if name.is_relative_to(inside) and name != PurePosixPath(inside)
    )
    return into / inside, [str(name) for name in below if not (into / inside / name).exists() and str(name)[0] != "."]


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT")


@contextmanager
def _hub_errors(uri: str, revision: str | None) -> Iterator[None]:
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError as error:
        raise not_found(
            f"{uri} is gated: accept its terms on the hub, and name a secret with HF_TOKEN in secretRef",
            reason="InputForbidden",
        ) from error
    except RepositoryNotFoundError as error:
        raise not_found(
            f"{uri}: the hub has no such repository, or it is private; correct the URI, or name a secret with HF_TOKEN"
            " in secretRef"
        ) from error
    except RevisionNotFoundError as error:
        raise not_found(f"{uri} has no revision {revision}; correct it") from error
    except HFValidationError as error:
        raise bad_configuration("BadUri", f"{uri}: {error}") from error
    except BaseException as caught:
        failure = as_exception(caught)
        # HTTP errors come from whatever client the library uses today; only the disk's own errors are not the hub's.
        if isinstance(failure, OSError) and failure.errno is not None and not isinstance(failure, ConnectionError):
            raise
        raise StageError(
            reason="HubUnavailable",
            message=f"{uri}: the hub does not answer ({type(failure).__name__}: {failure}); set HF_ENDPOINT to a"
            " mirror that can be reached, or use a folder (file://, pvc://, s3://)",
            exit_code=ExitCode.INTERNAL_ERROR,
        ) from caught
