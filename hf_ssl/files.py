# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Read untrusted text, JSON and YAML: bounded size, UTF-8, plain data only."""

import json
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

import yaml

from .errors import RecipeError


MOST_BYTES = 64 * 2**20
_MOST_YAML_BYTES = 256 * 2**10  # the parser takes about 10 s per megabyte
_MOST_YAML_VALUES = 50_000
_MOST_DEPTH = 100


def read_text(path: Path, most: int = MOST_BYTES) -> str:
    """Read a text file of at most `most` bytes.

    Raises:
        RecipeError: the file is missing, too large, not a regular file, or not UTF-8.
    """
    try:
        if not path.is_file():
            raise RecipeError(f"There is no file {path}.")
        if path.stat().st_size > most:
            raise RecipeError(f"{path} has {path.stat().st_size:,} bytes; at most {most:,} are allowed.")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise RecipeError(f"{path} is not UTF-8 text; save it as UTF-8, or download it again.") from None
    except OSError as error:
        raise RecipeError(f"{path} cannot be read ({error.strerror or error}).") from error


def read_json(path: Path, most: int = MOST_BYTES) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        RecipeError: as in `read_text`, or not a JSON object.
    """
    text = read_text(path, most)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{path} is not valid JSON ({_short(error)}).") from None
    if not isinstance(content, dict):
        raise RecipeError(f"{path} must be a JSON object.")
    return content


def read_yaml(text: str, name: str) -> Any:
    """Parse a YAML document of plain values; aliases (`*name`) become copies.

    Args:
        name: name of the text for messages.

    Raises:
        RecipeError: invalid YAML, or values that contain themselves, are too many or nested too deeply.
    """
    if len(text) > _MOST_YAML_BYTES:
        raise RecipeError(f"{name} is too long for a recipe ({len(text):,} characters).")
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if weigh(node, _below) > _MOST_YAML_VALUES:
                raise RecipeError(f"{name} expands to too many values; use fewer aliases (*name).")
            return _copied(loader.construct_document(node))
        finally:
            loader.dispose()
    except RecipeError:
        raise
    except (yaml.YAMLError, RecursionError, ValueError, TypeError, OverflowError) as error:
        raise RecipeError(f"{name} is not valid YAML: {_short(error)}.") from None


def refuse_compressed(file: IO[bytes] | Path, size: int) -> None:
    """Raise ValueError if a torch zip archive of `size` bytes unpacks to more; torch never compresses."""
    if sum(entry.file_size for entry in zipfile.ZipFile(file).infolist()) > size:
        raise ValueError("it is compressed, which files written by torch never are")


def weigh(value: Any, parts: Callable[[Any], Iterable[Any]], own: Callable[[Any], int] = lambda value: 1) -> int:
    """Sum of `own` over a value and all its parts; shared parts count each time.

    Raises:
        ValueError: values contain themselves, or are nested too deeply.
    """
    known: dict[int, int] = {}

    def total(value: Any, depth: int) -> int:
        if depth > _MOST_DEPTH or known.get(id(value)) == -1:
            raise ValueError("its values contain themselves or are nested too deeply")
        if id(value) not in known:
            known[id(value)] = -1  # being counted
            known[id(value)] = own(value) + sum([total(part, depth + 1) for part in parts(value)])
        return known[id(value)]

    return total(value, 0)


def _below(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(part) for key, part in value.items()}
    return [_copied(part) for part in value] if isinstance(value, list) else value


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
