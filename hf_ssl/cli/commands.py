# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""The commands: each takes the parsed arguments, calls one function, and prints what a person wants to know.

What a command needs is imported when it runs: `--help` waits for none of it.
"""

import argparse
import gc
import json
import math
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ..errors import UserError
from ..recipe import RecipeError, load_recipe, recipe_header, shipped_recipes


@contextmanager
def _importing() -> Iterator[None]:
    """Without the garbage collector, which would go through all that is imported again and again to free nothing."""
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
        raise RecipeError(f"{args.output} is there already; add --overwrite, or name another file with --output.")
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
        print(f"{file}: its outputs differ from the model's by {error:.1e} at most, relative to the largest")
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
        raise RecipeError("Give --method for an original checkpoint, or --to with --output for the way back.")


def push_command(args: argparse.Namespace) -> None:
    from ..hub.push import push

    print(push(args.folder, args.name, private=args.private, revision=args.revision))


def recipes_command(args: argparse.Namespace) -> None:
    rows = []
    for name, path in shipped_recipes().items():
        recipe, header = load_recipe(path), recipe_header(path)
        row = {
            "name": name,
            "method": recipe.method,
            "backbone": recipe.model.get("backbone", "resnet50"),
            "dataset": header.get("Dataset", recipe.data.path or "your own"),
            "published": header.get("Published", "-"),
        }
        if args.word.lower() in " ".join(row.values()).lower():
            rows.append(row)
    if not rows:
        raise RecipeError(f"No recipe's line contains {args.word!r}; `hf-ssl recipes` lists all.")
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


def _value_range(given: list[str] | None) -> str | list[str] | None:
    return given[0] if given and len(given) == 1 else given


def evaluate_command(args: argparse.Namespace) -> None:
    from ..coerce import build
    from ..devices import process_state
    from ..evaluation.evaluate import How, evaluate, keep, settings_of
    from ..evaluation.protocols import Supervised
    from ..evaluation.store import CACHE
    from ..recipe import DataConfig, MonitorConfig

    given = {key: value for key, value in vars(args).items() if value is not None}
    for name in ("k", "temperature", "clips", "batch_size"):
        if not 0 < given.get(name, 1) < math.inf:
            raise RecipeError(f"--{name.replace('_', '-')} must be greater than 0, not {given[name]}.")
    if args.num_workers < 0:
        raise RecipeError(
            f"--num-workers must not be negative, it is {args.num_workers}; 0 reads in the process itself."
        )
    name = given.get("protocol", given.get("classifier"))
    if "protocol" in given and {"k", "temperature", "classifier"} & given.keys():
        raise RecipeError(f"--protocol {name} has its own settings; leave --k, --temperature and --classifier out.")
    names = ("bank_split", "query_split", "image_column", "label_column", "k", "temperature", "batch_size")
    monitor = MonitorConfig(path=args.data, **{name: given[name] for name in names if name in given})
    content = {"path": args.data, "num_workers": args.num_workers, "value_range": _value_range(args.value_range)}
    data = build(DataConfig, content, "data.")
    how = How(args.clips, args.layer, cache=None if args.no_cache else CACHE)
    kinds = ("knn", "linear", "lowshot", "retrieval") if args.measured == "all" else (args.measured,)
    found: dict[str, dict] = {kind: {} for kind in kinds}
    for kind in kinds:
        settings = settings_of(kind, name, monitor)
        _check_options(isinstance(settings, Supervised), given)
        for model in args.models:
            with _keys_as_options():
                if isinstance(settings, Supervised):
                    found[kind][model] = _train_classifier(kind, model, name, data, monitor, settings, given)
                else:
                    more = {"folds": given.get("folds"), "baselines": not args.no_baselines}
                    found[kind][model] = evaluate(kind, model, data, monitor, settings=settings, how=how, **more)
            if process_state().is_main_process:
                one = len(kinds) == len(args.models) == 1
                keep(found[kind][model], model, data, name, Path(args.output) if one and args.output else None)
    if process_state().is_main_process:
        if args.output and len(kinds) * len(args.models) > 1:
            _write_json(args.output, found)
        _print_evaluation(args, found)
    process_state().destroy_process_group()


@contextmanager
def _keys_as_options() -> Iterator[None]:
    """A remedy names the option of this command in place of the key of a recipe."""
    try:
        yield
    except RecipeError as error:
        text = re.sub(r"(?:data|monitor)\.path=", "--data ", str(error))
        keys = r"monitor\.(\w+)|data\.(image_column|label_column|value_range|split|num_workers)\b"
        text = re.sub(keys, lambda m: f"--{(m[1] or m[2]).replace('_', '-')}", text)
        raise RecipeError(text) from error


def _check_options(trains: bool, given: dict) -> None:
    """Raises RecipeError for options that would decide nothing."""
    names = ("layer", "folds") if trains else ("epochs", "train_batch_size", "seeds", "precision")
    for name in names:
        if name in given:
            which = "protocols that train nothing by gradient descent" if trains else "protocols that train"
            raise RecipeError(f"--{name.replace('_', '-')} is for {which}; leave it out, or take another --protocol.")


def _train_classifier(kind: str, model: str, name: str | None, data, monitor, settings, given: dict) -> dict:
    from ..recipe import TrainConfig
    from ..training.signals import Interrupted
    from ..training.supervised import supervised

    size = given.get("train_batch_size", settings.batch_size)
    if not (size >= 1 and given.get("seeds", 1) >= 1 and 0 < given.get("epochs", 1) < math.inf):
        raise RecipeError("--epochs, --seeds and --train-batch-size must be greater than 0.")
    scale = size / settings.batch_size  # the rate follows the batch
    settings = replace(
        settings,
        epochs=given.get("epochs", settings.epochs),
        batch_size=size,
        lr=tuple(lr * scale for lr in settings.lr),
        head_lr=settings.head_lr and settings.head_lr * scale,
        seeds=given.get("seeds", settings.seeds),
    )
    place = Path(model) if Path(model).is_dir() else Path("runs") / model.replace("/", "_").replace(":", "_")
    folder = (place.parent if place.name == "model" else place) / "evaluations" / f"{kind}-{name or 'default'}"
    train = TrainConfig(precision=given.get("precision", "auto"))
    try:
        return supervised(model, data, monitor, settings, folder=folder, protocol=kind, train=train)
    except Interrupted as stop:
        sys.stderr.write(f"hf-ssl: {stop}\n")
        sys.exit(128 + stop.signum)


def mteb_command(args: argparse.Namespace) -> None:
    from ..evaluation.mteb_tasks import run_mteb

    if args.batch_size <= 0:
        raise RecipeError(f"--batch-size must be greater than 0, not {args.batch_size}.")
    folder = Path(args.output) if args.output else None
    scores = run_mteb(args.model, args.tasks, folder=folder, layer=args.layer, batch_size=args.batch_size)
    for task, score in scores.items():
        print(f"{task}  {score:.2%}")


def embed_command(args: argparse.Namespace) -> None:
    from ..coerce import build
    from ..devices import process_state
    from ..evaluation.embed import embed
    from ..evaluation.evaluate import How
    from ..recipe import DataConfig

    for name in ("neighbors", "clips", "batch_size"):
        if getattr(args, name) <= 0:
            raise RecipeError(f"--{name.replace('_', '-')} must be greater than 0, not {getattr(args, name)}.")
    data = build(DataConfig, {"path": args.data, "split": args.split, "num_workers": args.num_workers}, "data.")
    how = How(args.clips, args.layer)
    more = {"neighbors": args.neighbors, "batch_size": args.batch_size, "tower": args.tower}
    with _keys_as_options():
        file = embed(args.model, data, args.output, how=how, **more)
    if process_state().is_main_process:
        print(file.resolve())
    process_state().destroy_process_group()


def report_command(args: argparse.Namespace) -> None:
    from ..coerce import build
    from ..recipe import DataConfig

    try:
        from ..report import report
    except ImportError as error:
        raise UserError(f'A report needs {error.name}: pip install "hf_ssl[report]".') from None
    data = None if args.data is None else build(DataConfig, {"path": args.data}, "data.")
    print(report(args.runs, data, args.output))


def _write_json(file: str, found: dict[str, dict]) -> None:
    try:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(json.dumps(found, indent=2), encoding="utf-8")
    except OSError as error:
        raise UserError(f"The results could not be written to {file} ({error.strerror}).") from error


def _print_evaluation(args: argparse.Namespace, found: dict[str, dict]) -> None:
    from ..evaluation.results import table

    every = [result for results in found.values() for result in results.values()]
    if args.json:
        print(json.dumps(every[0] if len(every) == 1 else every))
        return
    for kind, results in found.items():
        first = next(iter(results.values()))
        if failed := first["failed"]:
            said = f"{len(failed)} file(s) could not be read and are not counted, the first is {failed[0]}."
            sys.stderr.write(f"{said}\n")
        measured = first["measured"]
        numbers = ", ".join(
            f"{first[key]:,} {key}" + (f" ({measured[key]})" if key in measured else "")
            for key in ("examples", "bank", "queries")
            if key in first
        )
        print(f"{kind} on {args.data} ({'; '.join(filter(None, (first.get('said'), numbers)))})")
        print(table(results))
