# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Read untrusted pickles without executing code.

A pickle is a program. `read_pickle` interprets it with arrays, plain containers and the names that the caller allows;
nothing is imported, and every other name is refused.
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
    "_codecs.encode": lambda text, encoding: text.encode("latin1"),  # how protocol 2 stores bytes
}
for _module in ("builtins", "__builtin__"):
    NUMPY[f"{_module}.bytes"] = lambda: b""  # empty arrays
for _core in ("numpy.core", "numpy._core"):
    NUMPY[f"{_core}.multiarray._reconstruct"] = np._core.multiarray._reconstruct
    NUMPY[f"{_core}.multiarray.scalar"] = np._core.multiarray.scalar
    NUMPY[f"{_core}.numeric._frombuffer"] = np._core.numeric._frombuffer


class Refused(pickle.UnpicklingError):
    """A pickle uses a name that is not allowed."""


def numpy_only(module: str, name: str) -> Any:
    """Stand-in for `module.name` in a pickle of arrays and plain containers."""
    if f"{module}.{name}" not in NUMPY:
        raise Refused(f"{module}.{name}")
    return NUMPY[f"{module}.{name}"]


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, named: Callable[[str, str], Any]):
        super().__init__(file, encoding="latin1")  # Python 2 strings
        self.named = named

    def find_class(self, module: str, name: str) -> Any:
        return self.named(module, name)


def read_pickle(path: Path, what: str, named: Callable[[str, str], Any] = numpy_only) -> Any:
    """Content of a pickle.

    Args:
        what: expected kind of content, for messages.
        named: (module, name) -> its stand-in.

    Raises:
        RecipeError: the file does not exist, or uses a name that is not allowed.
        Exception: broken or hostile files may raise anything.
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
