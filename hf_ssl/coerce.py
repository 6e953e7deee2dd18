# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Build dataclasses from plain YAML data: check every key and type, and report errors in one sentence."""

import difflib
import math
import re
import reprlib
import types
import typing
from contextlib import suppress
from dataclasses import is_dataclass
from datetime import date
from typing import Annotated, Any, Literal

from .errors import RecipeError


_NAMES = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
_LARGEST = 2**53  # above this, floats are not exact integers


def nearest(name: str, valid, prefix: str = "") -> str:
    """End of an error sentence about an unknown name: the closest valid names, or all of them."""
    close = difflib.get_close_matches(str(name), [str(v) for v in valid], n=3, cutoff=0.5)
    if close:
        return f"; did you mean {' or '.join(prefix + c for c in close)}?"
    return f" (choose from: {listed(sorted(map(str, valid)))})."


def listed(names) -> str:
    """Comma-separated names, ten at most."""
    names = list(map(str, names))
    return ", ".join(names[:10]) + (f" and {len(names) - 10:,} more" if len(names) > 10 else "")


def build(cls, content: Any, prefix: str = ""):
    """Build an instance of the dataclass `cls` from nested dicts; `prefix` precedes its keys in messages.

    Raises:
        RecipeError: unknown key or wrong type.
    """
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise RecipeError(f"{prefix.rstrip('.')} must be a mapping of keys, not {_shown(content)}.")
    hints = typing.get_type_hints(cls, include_extras=True)
    values = {}
    for key, value in content.items():
        if key not in hints:
            raise RecipeError(f"There is no key {prefix}{key}{nearest(key, hints, prefix)}")
        values[key] = _coerce(value, hints[key], f"{prefix}{key}")
    return cls(**values)


def _coerce(value: Any, hint: Any, key: str) -> Any:
    """Convert `value` to the type `hint`. YAML reads 1e-6 as text and 1 as an int; both are accepted as floats."""
    if is_dataclass(hint):
        return build(hint, value, f"{key}.")
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:  # a number, or one of the words beside it
        return value if value in args[1:] else _coerce(value, args[0], key)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _coerce_union(value, [a for a in args if a is not type(None)], key)
    if origin is Literal:
        if value is False and "no" in args:  # YAML reads a bare `no` as false
            value = "no"
        if value not in args:
            raise RecipeError(f"{key}={_shown(value)} is not valid{nearest(value, args)}")
        return value
    if origin is tuple:
        return _coerce_tuple(value, args, key)
    if origin is dict:
        if not isinstance(value, dict | None):
            raise RecipeError(f"{key} must be a mapping of keys, not {_shown(value)}.")
        return _numbers(value or {}, key)
    if hint is bool or not isinstance(value, bool):
        if isinstance(value, hint):
            return _possible(value, key)
        if hint is float:
            number = None
            with suppress(TypeError, ValueError, OverflowError):
                number = float(value)
            if number is not None:
                return _possible(number, key)
        if hint is str and isinstance(value, int | date):  # a folder's name may be a year
            return str(value)
    raise RecipeError(f"{key} must be {_NAMES[hint]}, not {_shown(value)}.")


def _coerce_union(value: Any, hints: list, key: str) -> Any:
    """Convert `value` to the first type that accepts it."""
    *others, last = hints
    for hint in others:
        with suppress(RecipeError):
            return _coerce(value, hint, key)
    try:
        return _coerce(value, last, key)
    except RecipeError as error:
        either = [repr(a) for hint in others for a in typing.get_args(hint) if isinstance(a, str)]
        text = str(error).replace(" must be ", f" must be {' or '.join([*either, ''])}", 1)
        raise RecipeError(text) from None


def _coerce_tuple(value: Any, args: tuple, key: str) -> tuple:
    if args[-1] is Ellipsis:
        items = [value] if isinstance(value, str) else value
        if isinstance(items, list | tuple):
            return tuple(_coerce(v, args[0], key) for v in items)
        raise RecipeError(f"{key} must be a list, not {_shown(value)}.")
    if not isinstance(value, list | tuple) or len(value) != len(args):
        raise RecipeError(f"{key} must be a list of {len(args)} numbers, not {_shown(value)}.")
    return tuple(_coerce(v, a, key) for v, a in zip(value, args, strict=True))


def _numbers(value: Any, key: str) -> Any:
    """In free-form sections, convert text that is a number in YAML 1.2 (1e-6)."""
    if isinstance(value, dict):
        return {k: _numbers(v, f"{key}.{k}") for k, v in value.items()}
    if isinstance(value, list):
        return [_numbers(v, key) for v in value]
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        value = float(value)
    return _possible(value, key)


def _possible(value: Any, key: str) -> Any:
    """Return the value, unless it is a number or text that no run can use."""
    if isinstance(value, float) and not math.isfinite(value):
        raise RecipeError(f"{key} must be a finite number, not {value}.")
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise RecipeError(f"{key} must be a number up to 2^53, not {_shown(value)}.")
    if isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
        raise RecipeError(f"{key} contains an invalid character: {_shown(value)}.")
    return value


def _shown(value: Any) -> str:
    """The value for a message, shortened if long."""
    return reprlib.repr(value)
