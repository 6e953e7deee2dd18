# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Pickles of others, read without executing them.

A pickle is a program. `read_pickle` runs it on a machine that knows arrays, plain containers and what a caller names:
nothing is imported for it, and every other name is refused.
"""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..recipe import RecipeError


NUMPY: dict[str, Any] = {
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    "_codecs.encode": lambda text, encoding: text.encode("latin1"),  # protocol 2 writes bytes so
}
for _module in ("builtins", "__builtin__"):
    NUMPY[f"{_module}.bytes"] = lambda: b""  # of an empty array
for _core in ("numpy.core", "numpy._core"):
    NUMPY[f"{_core}.multiarray._reconstruct"] = np._core.multiarray._reconstruct
    NUMPY[f"{_core}.multiarray.scalar"] = np._core.multiarray.scalar
    NUMPY[f"{_core}.numeric._frombuffer"] = np._core.numeric._frombuffer


class Refused(pickle.UnpicklingError):
    """A pickle asks for what is not known here."""


def numpy_only(module: str, name: str) -> Any:
    """What stands for `module.name` in a pickle of arrays and plain containers."""
    if f"{module}.{name}" not in NUMPY:
        raise Refused(f"{module}.{name}")
    return NUMPY[f"{module}.{name}"]


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, named: Callable[[str, str], Any]):
        super().__init__(file, encoding="latin1")  # texts of Python 2
        self.named = named

    def find_class(self, module: str, name: str) -> Any:
        return self.named(module, name)


def read_pickle(path: Path, what: str, named: Callable[[str, str], Any] = numpy_only) -> Any:
    """What is in the pickle.

    Args:
        what: it should be, as a message calls it.
        named: (module, name) -> what stands for it.

    Raises:
        RecipeError: no such file, or one that asks for more than it needs.
        Exception: whatever a broken or hostile file brings about.
    """
    if not path.is_file():
        raise RecipeError(f"There is no file {path}.")
    try:
        with path.open("rb") as file:
            return _Unpickler(file, named).load()
    except Refused as error:
        raise RecipeError(
            f"{path} asks for {error}, which no {what} needs; loading it could execute arbitrary code, which "
            "hf-ssl never does."
        ) from error
