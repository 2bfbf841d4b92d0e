"""PEFT, which makes adapters, for all who use it.

It imports bitsandbytes, which would warn of itself, fetch parts from the hub where it can, and have functions compiled,
for which alone torch takes a second to load: here it is imported so that it does not.
"""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from typing import Any

import torch


def _as_it_is(function: Any = None, **_: Any) -> Any:
    """In place of `torch.compile`."""
    return _as_it_is if function is None else function


logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
_torch: Any = torch
_modules: dict[str, Any] = sys.modules
_compile, _torch.compile = torch.compile, _as_it_is
_kernels = _modules.setdefault("kernels", None)  # None: it cannot be imported
try:
    with suppress(ImportError):  # only QLoRA needs it
        import bitsandbytes  # noqa: F401
finally:
    _torch.compile = _compile
    if _kernels is None:
        del _modules["kernels"]

import peft  # noqa: E402

__all__ = ["peft"]
