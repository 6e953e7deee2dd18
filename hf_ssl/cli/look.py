# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Commands that inspect a dataset or the machine."""

import argparse
import json
from dataclasses import replace

from ..errors import RecipeError
from ..recipe import DataConfig, recipe_from_dict
from ..recipe.files import apply_override


_KINDS = {"images": "image", "videos": "video", "sounds": "audio"}


def add_data(subparsers, path) -> None:
    command = subparsers.add_parser(
        "data",
        help="inspect a dataset, and list files that training would skip",
        description="Read every file once, as training does, and report counts, classes, sizes, pixel types, "
        "duplicates, broken and unused files, and reading speed. Nothing is changed.",
    )
    command.add_argument("data", type=path, help="any value of data.path: folder, Parquet or tar files, Hub id, URL")
    command.add_argument(
        "overrides", nargs="*", metavar="data.key=value", help="recipe keys, such as data.image_column=jpg"
    )
    command.add_argument("--kind", choices=_KINDS, help="if a dataset has several kinds (default: the first of these)")
    command.add_argument("--max-examples", type=int, metavar="N", help="read only the first N of each split")
    command.add_argument("--json", action="store_true", help="one JSON object, with all file names, instead of text")
    command.set_defaults(command=data_command)


def data_command(args: argparse.Namespace) -> None:
    data = _data_section(args)
    from ..survey import survey
    from ..survey.findings import text

    try:
        found = survey(data, _KINDS.get(args.kind))
    except RecipeError as error:
        raise RecipeError(str(error).removeprefix("data.path=")) from error
    print(json.dumps(found, ensure_ascii=False) if args.json else text(found))


def _data_section(args: argparse.Namespace) -> DataConfig:
    if args.max_examples is not None and args.max_examples < 1:
        raise RecipeError(f"--max-examples must be greater than 0, not {args.max_examples}.")
    content: dict = {"method": "simsiam", "train": {"steps": 1}}  # a minimal valid recipe around the data section
    for override in args.overrides:
        if not override.startswith("data."):
            raise RecipeError(f"{override!r} is not a data key; write data.key=value, or remove it.")
        apply_override(content, override)
    data = {**content.get("data", {}), "path": args.data}
    checked = recipe_from_dict({**content, "data": data}).data
    return checked if args.max_examples is None else replace(checked, max_examples=args.max_examples)


def add_env(subparsers) -> None:
    command = subparsers.add_parser(
        "env",
        help="show versions, devices, memory and disk of this machine, for a bug report",
        description="Information to paste into a bug report. Tokens are never shown, only whether one is set.",
    )
    command.add_argument("--json", action="store_true", help="one JSON object instead of text")
    command.set_defaults(command=env_command)


def env_command(args: argparse.Namespace) -> None:
    from ..environment import environment, text

    found = environment()
    print(json.dumps(found) if args.json else text(found))
