"""The URIs of a job: which there are, which may be used, which claims they mean."""

from __future__ import annotations

from collections.abc import Iterable

from finetune_api.finetunejob import FineTuneJobSpec
from finetune_operator.job.plan import Claim


def uris_of(spec: FineTuneJobSpec) -> dict[str, str]:
    """Every URI of a job by the field that holds it, the artifacts' first."""
    uris = {"spec.artifacts.uri": spec.artifacts.uri, "spec.model.uri": spec.model.uri}
    uris |= {f"spec.data.sources[{number}].uri": source.uri for number, source in enumerate(spec.data.sources)}
    if spec.evaluation is not None and spec.evaluation.dataset is not None:
        uris["spec.evaluation.dataset.uri"] = spec.evaluation.dataset.uri
    return uris


def refusal_of(*, uri: str, allowed_roots: tuple[str, ...]) -> str | None:
    """Why a URI must not be used, or None."""
    if ".." in uri.split("/"):
        return f'{uri} contains ".."; write the path without it'
    if uri.startswith("file://") and not uri.startswith("file:///"):
        rest = uri.removeprefix("file://").removeprefix("./")
        return (
            f"{uri} names no absolute path; write file:///folder/{rest}, or, in local mode only, file://./{rest} for"
            " what lies beside the manifest"
        )
    if not any(_is_under(uri=uri, root=root) for root in allowed_roots):
        roots = ", ".join(allowed_roots) or "none"
        return f"{uri} is outside the allowed roots ({roots}); move it there, or have an administrator allow its root"
    return None


def claims_of(spec: FineTuneJobSpec) -> list[Claim]:
    """The claims behind the job's pvc:// URIs by name; writable where the artifacts are."""
    return claims_behind(read=uris_of(spec).values(), written=[spec.artifacts.uri])


def claims_behind(*, read: Iterable[str], written: Iterable[str]) -> list[Claim]:
    """The claims behind pvc:// URIs by name, writable where something is written."""
    writable = {_claim_of(uri) for uri in written} - {None}
    names = {claim for uri in read if (claim := _claim_of(uri)) is not None} | writable
    return [Claim(name=name, writable=name in writable) for name in sorted(name for name in names if name)]


def _claim_of(uri: str) -> str | None:
    return uri.removeprefix("pvc://").split("/", 1)[0] if uri.startswith("pvc://") else None


def _is_under(*, uri: str, root: str) -> bool:
    if root.endswith("/"):
        return uri.startswith(root)
    return uri == root or uri.startswith(f"{root}/")
