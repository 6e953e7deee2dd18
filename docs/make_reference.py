# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Write docs/recipe_keys.md and recipes/schema.json from the dataclasses that a recipe is read into.

    python docs/make_reference.py            write both files
    python docs/make_reference.py --check    exit with 1 if either is out of date

The meaning of a key is the comment after its field, or its entry in the docstring of the class. `make docs` runs this.
"""

import ast
import inspect
import io
import json
import re
import sys
import tokenize
import types
import typing
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from hf_ssl.data.views import View
from hf_ssl.models import METHODS as CLASSES
from hf_ssl.models import SSLConfig
from hf_ssl.recipe import METHODS, Recipe, sections
from hf_ssl.recipe.checks import RANGE_OF


ROOT = Path(__file__).parents[1]
PAGE, SCHEMA = ROOT / "docs" / "recipe_keys.md", ROOT / "recipes" / "schema.json"
INIT_FROM = "pretrained weights of the encoder to start from: `timm/NAME`, a Hub id or a folder"
JSON_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}
WORDS = {bool: "true or false", int: "integer", float: "number", str: "text", dict: "mapping"}


# What a key means


def field_comments(cls: type) -> dict[str, str]:
    """Field -> the comment at the end of its line."""
    source = inspect.getsource(cls)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    lines = {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}
    body = ast.parse(source).body[0].body
    named = [(node.target.id, lines.get(node.end_lineno, "")) for node in body if isinstance(node, ast.AnnAssign)]
    return {name: comment.lstrip("# ") for name, comment in named}


def docstring_entries(cls: type) -> dict[str, str]:
    """Field -> its entry under "Args:" in the docstring of the class or of a base."""
    entries: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        text = inspect.cleandoc(base.__dict__.get("__doc__") or "")
        if "Args:\n" not in text:
            continue
        block = text.split("Args:\n", 1)[1].split("\n\n")[0]
        for entry in re.split(r"\n?^ {4}(?=\w)", block, flags=re.M)[1:]:
            names, _, meaning = " ".join(entry.split()).partition(": ")
            names = re.sub(r" \(`.*?\)(?=,|$)", "", names)  # types and defaults, which have columns of their own
            for name in names.split(","):
                if not meaning.startswith("see `"):  # that of the base class holds
                    entries[name.strip()] = meaning.removesuffix(".")
    return entries


# Types and defaults


def type_text(hint: Any) -> str:
    """A type for a reader: "integer or null", "one of a, b"."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(dict.fromkeys(type_text(one) for one in args if not (one is int and float in args)))
    if origin is Annotated:
        return f"{type_text(args[0])} or `{args[1]}`"
    if origin is Literal:
        return ", ".join(f"`{one}`" for one in args)
    if origin in (tuple, list):
        rest = [one for one in args if one is not Ellipsis]
        if origin is list or Ellipsis in args:
            return f"list of {type_text(rest[0])}"
        return f"list of {len(rest)} {type_text(rest[0])}s"
    if hint is sections.Place:
        return "`{path, weight}`"
    return "null" if hint is type(None) else WORDS.get(origin or hint, "any")


def default_text(field) -> str:
    if field.default is MISSING and field.default_factory is MISSING:
        return "required"
    value = field.default if field.default is not MISSING else field.default_factory()
    if isinstance(value, float) and value == int(value):
        value = int(value)
    return f"`{json.dumps(list(value) if isinstance(value, tuple) else value)}`"


def range_text(key: str) -> str:
    interval = RANGE_OF.get(key, "")
    return f" in {interval.replace('[', '&#91;', 1)}" if interval and "1000000" not in interval else ""


# The page


def table(rows: list[tuple[str, Any, str, str, str]]) -> str:
    lines = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for name, hint, where, default, meaning in rows:
        cells = [f"`{name}`", type_text(hint) + range_text(where), default, meaning]
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |")
    return "\n".join(lines)


def section_table(cls: type, prefix: str, meanings: dict[str, str]) -> str:
    hints = typing.get_type_hints(cls, include_extras=True)
    plain = [field for field in fields(cls) if not is_dataclass(hints[field.name])]
    rows = [(f.name, hints[f.name], f"{prefix}{f.name}", default_text(f), meanings.get(f.name, "")) for f in plain]
    return table(rows)


def config_fields(cls: type) -> list:
    """Fields of a model's config that are its own or SSLConfig's, and not of every transformers config."""
    own = {name for base in cls.__mro__ if base.__module__.startswith("hf_ssl") for name in base.__annotations__}
    return [field for field in fields(cls) if field.name in own]


def view_meanings() -> dict[str, str]:
    return docstring_entries(View) | {k: v for k, v in field_comments(sections.ViewOverride).items() if v}


def page() -> str:
    hints = typing.get_type_hints(Recipe)
    parts = [
        "# Keys of a recipe",
        "<!-- Written by docs/make_reference.py; change the comments or docstrings that it reads. -->",
        "Every key can be set in the YAML file and after the recipe's name on the command line "
        "(`train.batch_size=512`). A key that is missing has its default; `null` means not set.",
    ]
    for name, hint in hints.items():
        if not is_dataclass(hint):
            continue
        parts += [f"## `{name}`", first_paragraph(hint), section_table(hint, f"{name}.", field_comments(hint))]
        if hint is sections.ViewsConfig:
            about = "These keys can be set in `views.all`, `views.first`, `views.second` and `views.local`."
            views = section_table(sections.ViewOverride, "views.*.", view_meanings())
            parts += [
                "### `views.all`, `first`, `second`, `local`",
                about + " `null` keeps the preset's value.",
                views,
            ]
        if hint is sections.DataConfig:
            parts += ["### An entry of `data.path`", section_table(sections.Place, "", field_comments(sections.Place))]
    general = [field for field in fields(Recipe) if not is_dataclass(hints[field.name]) and field.name != "model"]
    meanings = field_comments(Recipe)
    rows = [(f.name, hints[f.name], f.name, default_text(f), meanings[f.name]) for f in general]
    parts[3:3] = ["## At the top", table(rows)]
    parts += ["## `model`", f"The fields of the method's configuration, and `init_from`: {INIT_FROM}."]
    base = config_fields(SSLConfig)
    parts += ["### All methods on images", config_table(SSLConfig, base)]
    for method in METHODS:
        config = CLASSES[method][0]
        shared = {field.name: field.default for field in base} if issubclass(config, SSLConfig) else {}
        own = [f for f in config_fields(config) if f.name not in shared or f.default != shared[f.name]]
        parts += [f"### `{method}`", first_paragraph(config), config_table(config, own)]
    return "\n\n".join(parts) + "\n"


def config_table(cls: type, chosen: list) -> str:
    meanings = docstring_entries(cls)
    return table([(f.name, f.type, "", default_text(f), meanings.get(f.name, "")) for f in chosen])


def first_paragraph(cls: type) -> str:
    return " ".join(inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].split())


# The schema


def schema_of(hint: Any) -> dict[str, Any]:
    """JSON schema of a type."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if is_dataclass(hint):
        meanings = view_meanings() if hint is sections.ViewOverride else field_comments(hint)
        return object_of({f.name: f for f in fields(hint)}, typing.get_type_hints(hint, include_extras=True), meanings)
    if origin in (types.UnionType, typing.Union):
        return {"anyOf": [schema_of(one) for one in args]}
    if origin is Annotated:
        return {"anyOf": [schema_of(args[0]), {"const": args[1]}]}
    if origin is Literal:
        return {"enum": list(args)}
    if origin in (tuple, list):
        rest = [one for one in args if one is not Ellipsis]
        one = {"type": "array", "items": schema_of(rest[0])}
        if origin is tuple and Ellipsis not in args:
            return one | {"minItems": len(rest), "maxItems": len(rest)}
        # A single text stands for a list of one.
        return {"anyOf": [one, one["items"]]} if rest[0] is str or typing.get_origin(rest[0]) is Literal else one
    if hint is type(None):
        return {"type": "null"}
    return {"type": JSON_TYPES[hint]} if hint in JSON_TYPES else {"type": "object"} if origin is dict else {}


def object_of(chosen: dict[str, Any], hints: dict[str, Any], meanings: dict[str, str]) -> dict[str, Any]:
    properties = {}
    for name, field in chosen.items():
        properties[name] = schema_of(hints[name])
        if meanings.get(name):
            properties[name]["description"] = meanings[name]
        if isinstance(field.default, str | int | float | bool):
            properties[name]["default"] = field.default
    return {"type": "object", "additionalProperties": False, "properties": properties}


def schema() -> str:
    whole = object_of({f.name: f for f in fields(Recipe)}, typing.get_type_hints(Recipe), field_comments(Recipe))
    whole["properties"]["method"]["examples"] = list(METHODS)
    methods = {"type": "object", "description": "sections of keys for each method, which change with `method=`"}
    whole["properties"]["methods"] = methods
    conditions = []
    for method in METHODS:
        config = CLASSES[method][0]
        chosen = {field.name: field for field in config_fields(config)}
        model = object_of(chosen, {name: field.type for name, field in chosen.items()}, docstring_entries(config))
        model["properties"]["init_from"] = {"type": ["string", "null"], "description": INIT_FROM}
        of_method = {"properties": {"method": {"const": method}}}
        conditions.append({"if": of_method, "then": {"properties": {"model": model}}})
    head = {"$schema": "http://json-schema.org/draft-07/schema#", "title": "hf_ssl recipe", "required": ["method"]}
    return json.dumps(head | whole | {"allOf": conditions}, indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    made = {PAGE: page(), SCHEMA: schema()}
    stale = [file for file, text in made.items() if not file.exists() or file.read_text() != text]
    if "--check" in sys.argv:
        for file in stale:
            sys.stderr.write(f"{file.relative_to(ROOT)} is out of date; run `python docs/make_reference.py`.\n")
        return int(bool(stale))
    for file in stale:
        file.write_text(made[file])
    return 0


if __name__ == "__main__":
    sys.exit(main())
