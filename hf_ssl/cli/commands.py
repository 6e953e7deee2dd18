# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""The commands: each takes the parsed arguments, calls one function and prints the result.

Heavy modules are imported inside the command functions, so that `--help` stays fast.
"""

import argparse
import gc
import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import UserError
from ..recipe import RecipeError, copy_shipped, load_recipe, recipe_header, shipped_recipes


@contextmanager
def _importing() -> Iterator[None]:
    """Import without garbage collection, which would repeatedly scan new modules and free nothing."""
    gc.disable()
    yield
    gc.enable()
    gc.freeze()


def pretrain_command(args: argparse.Namespace) -> None:
    recipe = load_recipe(args.recipe, args.overrides)
    with _importing():
        from accelerate import PartialState

        from ..training.pretrain import pretrain
        from ..training.signals import Interrupted

    try:
        result = pretrain(recipe, report=True)
    except Interrupted as stop:
        sys.stderr.write(f"hf-ssl: {stop}\n")
        sys.exit(128 + stop.signum)
    PartialState().destroy_process_group()
    if result.is_main_process:
        from .closing import closing

        print("\n".join(closing(result, recipe.monitor.k, recipe.start)))


def preview_command(args: argparse.Namespace) -> None:
    recipe = load_recipe(args.recipe, args.overrides)
    if Path(args.output).exists() and not args.overwrite:
        raise RecipeError(f"{args.output} already exists; add --overwrite, or choose another file with --output.")
    from ..preview import preview

    print(preview(recipe, num_images=args.images, output=args.output))


def plan_command(args: argparse.Namespace) -> None:
    recipe = load_recipe(args.recipe, args.overrides)
    from ..plan import parse_memory, plan, table, this_machine

    processes, memory, precision = this_machine() if args.processes is None else (args.processes, None, "bf16")
    memory = memory if args.memory is None else parse_memory(args.memory)
    result = plan(
        recipe,
        processes,
        precision=args.precision or precision,
        memory=memory,
        images_per_second=args.images_per_second,
    )
    print(json.dumps(result) if args.json else table(result))


def bench_command(args: argparse.Namespace) -> None:
    recipe = load_recipe(args.recipe, args.overrides)
    if args.repeats < 1 or not 0 < args.seconds < math.inf:
        raise RecipeError("--repeats must be at least 1, and --seconds greater than 0.")
    from accelerate import PartialState

    from ..bench import bench, table

    how = {"repeats": args.repeats, "seconds": args.seconds, "cpu_seconds": args.cpu_seconds}
    result = bench(recipe, against=args.against, **how)
    if PartialState().is_main_process:
        print(json.dumps(result) if args.json else table(result))
    PartialState().destroy_process_group()


def card_command(args: argparse.Namespace) -> None:
    from ..hub.refresh import refresh_card

    print(refresh_card(args.folder, license=args.license, name=args.name, datasets=args.datasets))


def export_command(args: argparse.Namespace) -> None:
    if args.onnx or args.torch:
        from ..hub.serve import export_for_serving

        file, error = export_for_serving(args.place, args.output, onnx=args.onnx)
        print(f"{file}: largest difference to the model's output {error:.1e}, relative to the largest value")
        return
    from ..hub.export import export_checkpoint

    print(export_checkpoint(args.place, args.output))


def convert_command(args: argparse.Namespace) -> None:
    from ..hub.convert import convert, convert_back

    if args.to and args.output:
        print(convert_back(args.path, args.to, args.output))
    elif args.method and not args.to:
        more = {"classifier": args.classifier, "statistics": args.statistics}
        print(convert(args.path, args.method, args.output, **more))
    else:
        raise RecipeError("Pass --method to convert an original checkpoint, or --to and --output to convert back.")


def push_command(args: argparse.Namespace) -> None:
    from ..hub.push import push

    print(push(args.folder, args.name, private=args.private, revision=args.revision))


def recipes_command(args: argparse.Namespace) -> None:
    if args.copy is not None:
        if not args.word:
            raise RecipeError("--copy needs a name: a recipe, accelerate/ddp, accelerate/fsdp2 ... or cluster/seer.")
        print(copy_shipped(args.word, args.copy))
        return
    rows = []
    for name, path in shipped_recipes().items():
        recipe, header = load_recipe(path), recipe_header(path)
        row = {
            "name": name,
            "method": recipe.method,
            "backbone": recipe.model.get("backbone") or recipe.model.get("video_backbone", "r2plus1d_18"),  # AVID's
            "dataset": header.get("Dataset", recipe.data.path or "your own"),
            "published": header.get("Published", "-"),
        }
        if args.word.lower() in " ".join(row.values()).lower():
            rows.append(row)
    if not rows:
        raise RecipeError(f"No recipe matches {args.word!r}; `hf-ssl recipes` lists all recipes.")
    if args.json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        first, *more = row["published"].split("; ")
        row["published"] = f"{first}, {len(more)} more in the file" if more else first
    columns = list(rows[0])
    widths = {c: max(len(c), *(len(row[c]) for row in rows)) for c in columns}
    for row in [{c: c for c in columns}, *rows]:
        print("  ".join(row[c].ljust(widths[c]) for c in columns).rstrip())


def report_command(args: argparse.Namespace) -> None:
    from ..coerce import build
    from ..recipe import DataConfig

    try:
        from ..report import report
    except ImportError as error:
        raise UserError(f'The report needs {error.name}; pip install "hf_ssl[report]".') from None
    data = None if args.data is None else build(DataConfig, {"path": args.data}, "data.")
    print(report(args.runs, data, args.output))
