# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Look up a recipe's method: one of hf_ssl's, or the user's own.

A user's method is "path/to/file.py:MyForPreTraining" or "package.module:MyForPreTraining": a config and an
`XForPreTraining` in one file, see docs/new_method.md. Only `load_method` imports its code, for recipes named on the
command line or passed in Python; never because a checkpoint, a model folder or a repository names it.
"""

import ast
import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import xxhash
from transformers import PreTrainedConfig

from . import models
from .models import METHODS, register
from .models.modeling_ssl import SSLPreTrainedModel
from .recipe import RecipeError, method_name


_PACKAGE = "hf_ssl_own_methods"  # parent package of methods imported from files

Classes = tuple[type[PreTrainedConfig], type[SSLPreTrainedModel]]


def load_method(name: str) -> Classes:
    """The config and `XForPreTraining` of a method; imports a user's code.

    Raises:
        RecipeError: the code does not exist, fails, or does not define a method.
    """
    if _key(name) not in METHODS:
        place, _, class_name = name.rpartition(":")
        try:
            module = _from_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
        except Exception as error:  # user code may raise anything
            said = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise RecipeError(f"method={name}: {place} could not be imported ({said}).") from error
        METHODS[_key(name)] = _classes(name, module, class_name)
    return METHODS[_key(name)]


def method_classes(name: str) -> Classes:
    """As `load_method`, but never imports code; RecipeError if it has not been imported yet."""
    if _key(name) not in METHODS:
        raise RecipeError(
            f"The code of the method {name} is not imported just because a folder names it; pass it with --method."
        )
    return METHODS[_key(name)]


def default_views(name: str) -> str:
    """The method's default views preset."""
    return method_classes(name)[1].views


def without_memory(model_class: type, config: PreTrainedConfig) -> Any:
    """A model on torch's meta device, for the names and shapes of its tensors."""
    with torch.device("meta"):
        return model_class(config)


def source_file(name: str) -> Path | None:
    """File of a user's method; None for hf_ssl's methods."""
    return Path(inspect.getfile(method_classes(name)[1])) if ":" in name else None


def code_digest(name: str) -> str | None:
    """Digest of `source_file`, stored in checkpoints."""
    file = source_file(name)
    return None if file is None else xxhash.xxh3_128_hexdigest(file.read_bytes())


def _key(name: str) -> str:
    """Name of a method, independent of the folder of its file."""
    return method_name(name) if ":" in name else name


def shipped_code(file: Path) -> tuple[str, list[Path]]:
    """A user's method as shipped with a model, with imports of `hf_ssl.models` made relative.

    Returns:
        The source text, and the files of `hf_ssl/models` that it imports.

    Raises:
        RecipeError: it imports a part of hf_ssl that is not shipped.
    """
    text, needed = file.read_text(encoding="utf-8"), []
    lines = text.splitlines(keepends=True)
    for node in sorted(ast.walk(ast.parse(text)), key=lambda node: getattr(node, "lineno", 0), reverse=True):
        if isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "hf_ssl" for alias in node.names):
            raise RecipeError(
                f"{file}, line {node.lineno}: write `from hf_ssl.models import NAME`, so that it can be shipped "
                "with a model."
            )
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "hf_ssl" and not node.level:
            names: dict[str, list[str]] = {}
            for alias in node.names:
                names.setdefault(_sibling(file, node, alias.name), []).append(
                    alias.name + (f" as {alias.asname}" if alias.asname else "")
                )
            indent = " " * node.col_offset
            new = [f"{indent}from .{module} import {', '.join(found)}\n" for module, found in names.items()]
            lines[node.lineno - 1 : node.end_lineno] = new
            needed += [Path(models.__file__).parent / f"{module}.py" for module in names]
    return "".join(lines), needed


def _sibling(file: Path, node: ast.ImportFrom, name: str) -> str:
    """Name of the module in hf_ssl/models that defines `name`."""
    place = node.module or ""
    if place.startswith("hf_ssl.models."):
        return place.removeprefix("hf_ssl.models.")
    found = getattr(getattr(importlib.import_module(place), name, None), "__module__", None) or ""
    if not found.startswith("hf_ssl.models."):
        raise RecipeError(
            f"{file}, line {node.lineno}: {name} of {node.module} is not shipped with a model; import only from "
            "hf_ssl.models."
        )
    return found.removeprefix("hf_ssl.models.")


def _from_file(file: Path) -> ModuleType:
    """Import a file as a module with the same base name, which transformers needs to save the code."""
    if _PACKAGE not in sys.modules:
        sys.modules[_PACKAGE] = ModuleType(_PACKAGE)
        sys.modules[_PACKAGE].__path__ = []
    name = f"{_PACKAGE}.{file.stem}"
    if name in sys.modules:
        if sys.modules[name].__file__ == str(file.resolve()):
            return sys.modules[name]
        raise ImportError(f"another method file named {file.stem} is already imported")
    spec = importlib.util.spec_from_file_location(name, file.resolve())
    if spec is None or spec.loader is None:
        raise ImportError("it is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _classes(name: str, module: ModuleType, class_name: str) -> Classes:
    model = getattr(module, class_name, None)
    if not (isinstance(model, type) and issubclass(model, SSLPreTrainedModel)) or model.__module__ != module.__name__:
        raise RecipeError(f"method={name}: {module.__file__} defines no subclass {class_name} of SSLPreTrainedModel.")
    prefix = class_name.removesuffix("ForPreTraining")
    config: Any = getattr(module, f"{prefix}Config", None)
    needed = [f"{prefix}Config", *(prefix + suffix for suffix in model.auto_classes.values())]
    missing = [one for one in needed if not isinstance(getattr(module, one, None), type)]
    if prefix == class_name or missing:
        raise RecipeError(
            f"method={name}: {module.__file__} needs {' and '.join(missing) or 'a class called XForPreTraining'}; see "
            "docs/new_method.md."
        )
    if config.model_type in METHODS or not config.model_type.isidentifier():
        raise RecipeError(
            f"method={name}: model_type={config.model_type!r} of {prefix}Config must be a new identifier."
        )
    shipped_code(Path(inspect.getfile(module)))  # fail before training if the code cannot be shared
    register(config, model)
    METHODS[config.model_type] = (config, model)
    return config, model
