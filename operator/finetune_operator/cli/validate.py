"""`finetune validate`: what the apiserver, and then the operator, would say about a manifest."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence

from finetune_api import GROUP
from finetune_api.base import size_problem
from finetune_api.finetunejob import FineTuneJob
from finetune_api.modelendpoint import ModelEndpointSpec
from finetune_api.streams import tell
from finetune_operator.cli.errors import CommandError, ExitStatus
from finetune_operator.cli.manifests import files_of, folder_of, manifests_from, with_absolute_uris
from finetune_operator.core.config import OperatorConfig
from finetune_operator.core.ports import Manifest
from finetune_operator.job.deepspeed_config import DeepSpeedConfigError, with_config
from finetune_operator.job.resolve import refusal as impossible
from finetune_operator.job.resolve import resolve, unsupported
from finetune_operator.validation import FieldError, refusal, validate


def run(options: argparse.Namespace) -> int:
    """Check all manifests; BAD_INPUT when one is refused."""
    wrong = 0
    for source in options.filename:
        for file in files_of(source):
            try:
                written = manifests_from(file)
            except CommandError as error:
                wrong += 1
                tell(f"error: {error}", error=True)
                continue
            beside = config_maps(written)
            for manifest in written:
                if manifest in beside:
                    tell(f"configmap/{_name(manifest)} is read with the job that names it")
                    continue
                objections = objections_to(with_absolute_uris(manifest, folder=folder_of(file)), beside=beside)
                if objections is None:
                    tell(f"{manifest['kind'].lower()}.{GROUP}/{_name(manifest)} is valid")
                else:
                    wrong += 1
                    tell(f"{file}: {objections}", error=True)
    return ExitStatus.BAD_INPUT if wrong else ExitStatus.DONE


def config_maps(manifests: Iterable[Manifest]) -> list[Manifest]:
    """The ConfigMaps among manifests."""
    return [each for each in manifests if (each.get("apiVersion"), each.get("kind")) == ("v1", "ConfigMap")]


def objections_to(manifest: Manifest, *, beside: Sequence[Manifest] = ()) -> str | None:
    """What speaks against a manifest, in the form in which kubectl shows it; None: nothing. `beside`: ConfigMaps that
    come with it."""
    errors = validate(manifest)
    if errors:
        return in_kubectls_words(manifest, errors)
    kind, problem = str(manifest["kind"]), None
    if kind == "FineTuneJob":
        problem = _problem_of_run(manifest, beside=beside)
    elif kind == "ModelEndpoint":
        problem = size_problem(ModelEndpointSpec.model_validate(manifest["spec"]))
    if problem is not None:
        return f'The {kind} "{_name(manifest)}" can never run: {problem}'
    return None


def checked(manifest: Manifest, *, beside: Sequence[Manifest] = ()) -> Manifest:
    """The manifest, if nothing speaks against it. Raises CommandError."""
    objections = objections_to(manifest, beside=beside)
    if objections is not None:
        raise CommandError(objections)
    return manifest


def complete(manifest: Manifest, *, source: str, namespace: str, beside: Sequence[Manifest] = ()) -> Manifest:
    """The manifest, valid, with a namespace and with a name to come back to. Raises CommandError."""
    metadata = dict(checked(manifest, beside=beside)["metadata"])
    metadata["namespace"] = metadata.get("namespace") or namespace
    if not metadata.get("name"):
        raise CommandError(f"{source}: metadata.name is missing; what comes back needs a name")
    return {**manifest, "metadata": metadata}


def in_kubectls_words(manifest: Manifest, errors: list[FieldError]) -> str:
    """The refusal as `kubectl apply` prints it."""
    kind, name = str(manifest.get("kind", "")), _name(manifest)
    if errors[0].reason in ("BadRequest", "UnknownField"):
        if errors[0].message.startswith("no matches for"):
            return errors[0].message
        said = refusal(kind=kind, name=name, errors=errors, words=FieldError.with_hint)
        return f"Error from server (BadRequest): {said}"
    lines = list(dict.fromkeys(error.with_hint() for error in errors))
    if len(lines) == 1:
        return f'The {kind} "{name}" is invalid: {lines[0]}'
    return "\n".join([f'The {kind} "{name}" is invalid: ', *(f"* {line}" for line in lines)])


def _problem_of_run(manifest: Manifest, *, beside: Sequence[Manifest]) -> str | None:
    """What the operator refuses although the schema allows it. Which URIs are allowed is each cluster's own affair."""
    metadata = {**manifest["metadata"], "name": _name(manifest)}
    job = FineTuneJob.from_object({**manifest, "metadata": metadata, "status": {}})
    wish = unsupported(job.spec)
    if wish is not None:
        return f"{wish} is not supported"
    everything = OperatorConfig(trainer_image="any", allowed_roots=("file://", "pvc://", "s3://", "gs://", "hf://"))
    found = impossible(job=job, config=everything)
    if found is not None:
        return found.message
    reference = job.spec.compute.config_ref if job.spec.compute else None
    named = (each.get("data") or {} for each in beside if reference is not None and _name(each) == reference.name)
    data = next((each for each in named if reference is not None and reference.key in each), None)
    try:
        if data is not None:
            with_config(resolve(job=job, config=everything, baseline=None), job=job, data=data)
    except DeepSpeedConfigError as error:
        return str(error)
    return None


def _name(manifest: Manifest) -> str:
    metadata = manifest.get("metadata")
    return str((metadata.get("name") or metadata.get("generateName") or "") if isinstance(metadata, dict) else "")
