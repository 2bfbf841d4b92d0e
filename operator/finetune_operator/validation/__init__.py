"""The apiserver's validation without an apiserver.

`finetune validate` and local mode refuse what a cluster refuses, in the same words.

It checks against the schema that the CustomResourceDefinitions are generated from, in the order and with the formats of
Kubernetes 1.36 (apiextensions-apiserver, kube-openapi and apimachinery).
"""

from finetune_operator.validation.field_errors import FieldError, Reason, refusal
from finetune_operator.validation.manifest_text import ManifestTextError, read_manifests
from finetune_operator.validation.validator import admit, validate, validate_status

__all__ = [
    "FieldError",
    "ManifestTextError",
    "Reason",
    "admit",
    "read_manifests",
    "refusal",
    "validate",
    "validate_status",
]
