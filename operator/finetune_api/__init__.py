"""The contract: resource types, run types and wire protocols that operator, trainer, gateway and CLI share.

pydantic and the standard library only; nothing here does I/O.
"""

GROUP = "finetune.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
