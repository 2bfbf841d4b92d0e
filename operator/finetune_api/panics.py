"""Libraries in Rust that give up: what they raise is no Exception, and would end more than what asked them."""

from __future__ import annotations


class PanicError(RuntimeError):
    """A library in Rust (tokenizers, safetensors, pydantic-core) gave up."""


def as_exception(error: BaseException) -> Exception:
    """What a boundary caught, as the failure that it is: a panic of Rust is no Exception (PyO3, `PanicException`).

    Raises what is no failure: signals, the end of the process, a task that is given up.
    """
    if isinstance(error, Exception):
        return error
    if type(error).__name__ != "PanicException":  # each library has a class of its own, which cannot be imported
        raise error
    failure = PanicError(str(error))
    failure.__cause__ = error
    return failure
