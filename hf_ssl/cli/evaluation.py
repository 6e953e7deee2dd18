# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""`hf-ssl evaluate` and `hf-ssl embed`: options and commands.

Heavy modules are imported inside the command functions, so that `--help` stays fast.
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ..errors import UserError
from ..recipe import RecipeError
from .options import add_own_method, dataset, path


def add_evaluate(subparsers) -> None:
    """`hf-ssl evaluate`."""
    evaluate = subparsers.add_parser("evaluate", help="measure trained encoders")
    protocols = evaluate.add_subparsers(metavar="PROTOCOL", required=True)
    about = {
        "knn": "weighted k-nearest-neighbor accuracy on frozen features",
        "linear": "accuracy of a linear classifier on frozen features",
        "lowshot": "accuracy of a linear classifier trained on few examples, over several draws",
        "finetune": "accuracy after fine-tuning all layers of the encoder",
        "retrieval": "retrieval within a class; for AVID models between a video and its sound, both ways",
        "dense": "IoU of a linear layer on each position of the last feature map, trained with masks",
        "all": "kNN, linear, low-shot and retrieval on the same features",
    }
    for protocol, text in about.items():
        command = protocols.add_parser(protocol, help=text, description=f"{text[0].upper()}{text[1:]}.")
        command.add_argument(
            "models",
            nargs="+",
            metavar="MODEL",
            type=path,
            help="a run's folder, an exported model, the Hub id of a vision model with an image processor, or "
            "timm:NAME",
        )
        command.add_argument("--data", required=True, type=dataset, help="folder, Parquet file, Hub id or quickstart")
        add_own_method(command)
        if protocol != "all":
            command.add_argument("--protocol", metavar="NAME", help="use published settings, see docs/evaluation.md")
        command.add_argument("--query-split", default="test", help="split to evaluate (default test)")
        command.add_argument(
            "--bank-split", default="train", help="labeled split to compare with or train on (default train)"
        )
        command.add_argument("--image-column", help="default: the column of that type")
        if protocol == "dense":
            command.add_argument("--mask-column", help="default: found by type and name")
            command.add_argument(
                "--ignore-label",
                type=int,
                nargs="+",
                metavar="N",
                help="further class numbers to ignore, in addition to 255",
            )
        else:
            command.add_argument("--label-column", help="default: the column of that type")
        if protocol in ("linear", "lowshot", "finetune", "dense"):
            trained = command.add_argument_group("protocols that train (the same command resumes them)")
            trained.add_argument("--epochs", type=float, help="override the protocol's epochs, for a quick look")
            trained.add_argument("--train-batch-size", type=int, metavar="N", help="scales the learning rate, too")
            if protocol != "dense":
                trained.add_argument(
                    "--seeds", type=int, metavar="N", help="number of runs to report mean and spread of"
                )
            trained.add_argument(
                "--precision", choices=("auto", "no", "bf16", "fp16"), help="precision (default auto)"
            )
        if protocol == "knn":
            command.add_argument("--k", type=int, help="neighbors (default 20)")
            command.add_argument("--temperature", type=float, help="temperature of the weighted vote (default 0.1)")
        if protocol == "linear":
            command.add_argument("--classifier", choices=("logistic", "svm"), help="classifier (default logistic)")
            command.add_argument(
                "--folds", metavar="COLUMN", help="column of fold numbers: report the mean over the folds"
            )
        if protocol == "lowshot":
            command.add_argument(
                "--list",
                nargs="+",
                metavar="FILE",
                type=path,
                help="training images, one name per line, as in MSN's lists; one file per draw",
            )
        if protocol == "retrieval":
            command.add_argument(
                "--ground-truth",
                metavar="FILE",
                type=path,
                help="gnd_roxford5k.pkl or gnd_rparis6k.pkl; --data has the images",
            )
        if protocol not in ("finetune", "dense"):
            command.add_argument("--layer", metavar="N", help="hidden state (-1: the last), projector or projector.N")
            command.add_argument("--clips", type=int, help="clips to average per video or sound (default 10)")
            command.add_argument(
                "--no-cache", action="store_true", default=None, help="do not read or write cached features"
            )
        if protocol != "finetune":
            command.add_argument(
                "--no-baselines",
                action="store_true",
                default=None,
                help="skip the untrained network, raw pixels and their random projection",
            )
        if protocol != "dense":
            command.add_argument("--batch-size", type=int, default=256)
        command.add_argument(
            "--value-range",
            nargs="+",
            metavar=("full|LOW", "HIGH"),
            help="black and white point of images with more than 8 bits, like data.value_range",
        )
        command.add_argument("--num-workers", type=int, default=2, help="loader processes (default 2)")
        command.add_argument(
            "--output",
            type=path,
            metavar="FILE",
            help="JSON file of the result (default: results/ in a local model folder)",
        )
        command.add_argument(
            "--json", action="store_true", help="print JSON: one object, or a list of several results"
        )
        command.set_defaults(command=evaluate_command, measured=protocol)
    text = "image tasks of mteb; saves scores in the model's folder in the Hub's format"
    command = protocols.add_parser("mteb", help=text, description=f'{text.capitalize()}; pip install -e ".[mteb]".')
    command.add_argument("model", metavar="MODEL", type=path, help="as in the other protocols")
    command.add_argument("--tasks", nargs="+", required=True, metavar="NAME", help="task names, such as CIFAR10")
    command.add_argument("--layer", metavar="N", help="hidden state (-1: the last), projector or projector.N")
    command.add_argument("--batch-size", type=int, default=64)
    command.add_argument(
        "--output", type=path, metavar="FOLDER", help="folder for .eval_results/ (default: the model's)"
    )
    add_own_method(command)
    command.set_defaults(command=mteb_command)


def add_embed(subparsers) -> None:
    """`hf-ssl embed`."""
    command = subparsers.add_parser(
        "embed",
        help="write the embeddings of a dataset to a Parquet file",
        description="Columns: file, label, vector, x and y (two principal components), and nearest neighbors.",
    )
    command.add_argument("model", type=path, help="as in `hf-ssl evaluate`")
    command.add_argument("--data", required=True, type=dataset, help="folder, Parquet file, Hub id or quickstart")
    command.add_argument("--output", default="embeddings.parquet", type=path, metavar="FILE")
    command.add_argument("--overwrite", action="store_true", help="replace the file if it is there")
    command.add_argument("--split", default="train", help="split (default train)")
    command.add_argument("--layer", metavar="N", help="as in `hf-ssl evaluate`")
    command.add_argument("--tower", choices=("video", "audio"), help="tower of an AVID model (default video)")
    command.add_argument("--neighbors", type=int, default=5, help="neighbors per example (default 5)")
    command.add_argument("--clips", type=int, default=10, help="clips to average per video or sound (default 10)")
    command.add_argument("--batch-size", type=int, default=256)
    command.add_argument("--num-workers", type=int, default=2, help="loader processes (default 2)")
    add_own_method(command)
    command.set_defaults(command=embed_command)


def _value_range(given: list[str] | None) -> str | list[str] | None:
    return given[0] if given and len(given) == 1 else given


def evaluate_command(args: argparse.Namespace) -> None:
    from ..coerce import build
    from ..devices import process_state
    from ..evaluation.evaluate import How, evaluate, settings_of
    from ..evaluation.keep import keep
    from ..evaluation.protocols import Dense, Supervised
    from ..evaluation.store import CACHE
    from ..recipe import DataConfig, MonitorConfig

    given = {key: value for key, value in vars(args).items() if value is not None}
    name = _check_given(given)
    names = ("bank_split", "query_split", "image_column", "label_column", "k", "temperature", "batch_size")
    monitor = MonitorConfig(path=args.data, **{one: given[one] for one in names if one in given})
    content = {"path": args.data, "num_workers": args.num_workers, "value_range": _value_range(args.value_range)}
    data = build(DataConfig, content, "data.")
    how = How(given.get("clips", 10), given.get("layer"), cache=None if given.get("no_cache") else CACHE)
    kinds = ("knn", "linear", "lowshot", "retrieval") if args.measured == "all" else (args.measured,)
    found: dict[str, dict] = {kind: {} for kind in kinds}
    for kind in kinds:
        settings = settings_of(kind, name, monitor, lists=given.get("list"), ground_truth=given.get("ground_truth"))
        trains = isinstance(settings, Supervised | Dense)
        _check_options(trains, given, () if kind == "dense" else ("no_baselines",))
        for model in args.models:
            with _keys_as_options():
                if trains:
                    found[kind][model] = _train(kind, model, name, data, monitor, settings, given)
                else:
                    more = {"folds": given.get("folds"), "baselines": "no_baselines" not in given}
                    found[kind][model] = evaluate(kind, model, data, monitor, settings=settings, how=how, **more)
            if process_state().is_main_process:
                one = len(kinds) == len(args.models) == 1
                keep(found[kind][model], model, data, name, Path(args.output) if one and args.output else None)
    if process_state().is_main_process:
        if args.output and len(kinds) * len(args.models) > 1:
            _write_json(args.output, found)
        _print_evaluation(args, found)
    process_state().destroy_process_group()


def _check_given(given: dict) -> str | None:
    """Return the name of the protocol, if one was given.

    Raises:
        RecipeError: invalid numbers, or options that contradict each other.
    """
    for name in ("k", "temperature", "clips", "batch_size"):
        if not 0 < given.get(name, 1) < math.inf:
            raise RecipeError(f"--{name.replace('_', '-')} must be greater than 0, not {given[name]}.")
    if given["num_workers"] < 0:
        raise RecipeError(
            f"--num-workers must not be negative, but is {given['num_workers']}; 0 loads in the main process."
        )
    name = given.get("protocol", given.get("classifier"))
    if "protocol" in given and {"k", "temperature", "classifier"} & given.keys():
        raise RecipeError(f"--protocol {name} has its own settings; remove --k, --temperature and --classifier.")
    for option, protocol in (("list", "list"), ("ground_truth", "revisited")):
        if option in given and name not in (None, protocol):
            raise RecipeError(f"--{option.replace('_', '-')} selects its own protocol; remove --protocol {name}.")
        name = protocol if option in given else name
    return name


@contextmanager
def _keys_as_options() -> Iterator[None]:
    """Error messages name this command's options instead of recipe keys."""
    try:
        yield
    except RecipeError as error:
        text = re.sub(r"(?:data|monitor)\.path=", "--data ", str(error))
        keys = r"monitor\.(\w+)|data\.(image_column|label_column|value_range|split|num_workers)\b"
        text = re.sub(keys, lambda m: f"--{(m[1] or m[2]).replace('_', '-')}", text)
        raise RecipeError(text) from error


def _check_options(trains: bool, given: dict, unused: tuple[str, ...]) -> None:
    """Raise RecipeError for options that would have no effect."""
    frozen = ("layer", "folds", "clips", "no_cache", *unused)
    names = frozen if trains else ("epochs", "train_batch_size", "seeds", "precision")
    for name in names:
        if name in given:
            which = "protocols on frozen features" if trains else "protocols that train"
            raise RecipeError(f"--{name.replace('_', '-')} is for {which}; remove it, or choose another --protocol.")


def _train(kind: str, model: str, name: str | None, data, monitor, settings, given: dict) -> dict:
    from ..recipe import TrainConfig
    from ..training.signals import Interrupted

    size = given.get("train_batch_size", settings.batch_size)
    if not (size >= 1 and given.get("seeds", 1) >= 1 and 0 < given.get("epochs", 1) < math.inf):
        raise RecipeError("--epochs, --seeds and --train-batch-size must be greater than 0.")
    scale = size / settings.batch_size  # linear scaling rule
    settings = replace(
        settings,
        epochs=given.get("epochs", settings.epochs),
        batch_size=size,
        lr=tuple(lr * scale for lr in settings.lr),
    )
    if kind != "dense":
        head_lr = settings.head_lr and settings.head_lr * scale
        settings = replace(settings, head_lr=head_lr, seeds=given.get("seeds", settings.seeds))
    place = Path(model) if Path(model).is_dir() else Path("runs") / model.replace("/", "_").replace(":", "_")
    folder = (place.parent if place.name == "model" else place) / "evaluations" / f"{kind}-{name or 'default'}"
    train = TrainConfig(precision=given.get("precision", "auto"))
    try:
        if kind == "dense":
            from ..training.dense import dense

            masks = {"mask_column": given.get("mask_column"), "ignored": tuple(given.get("ignore_label", ()))}
            more = masks | {"baselines": "no_baselines" not in given}
            return dense(model, data, monitor, settings, folder=folder, train=train, **more)
        from ..training.supervised import supervised

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

    if Path(args.output).exists() and not args.overwrite:
        raise RecipeError(f"{args.output} already exists; add --overwrite, or choose another file with --output.")
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


def _write_json(file: str, found: dict[str, dict]) -> None:
    try:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(json.dumps(found, indent=2), encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"The results could not be written to {file} ({error.strerror}); choose another --output."
        ) from error


def _print_evaluation(args: argparse.Namespace, found: dict[str, dict]) -> None:
    from ..evaluation.results import table

    every = [result for results in found.values() for result in results.values()]
    if args.json:
        print(json.dumps(every[0] if len(every) == 1 else every))
        return
    for kind, results in found.items():
        first = next(iter(results.values()))
        if failed := first["failed"]:
            said = f"{len(failed)} file(s) could not be read and were skipped; the first is {failed[0]}."
            sys.stderr.write(f"{said}\n")
        measured = first["measured"]
        numbers = ", ".join(
            f"{first[key]:,} {key}" + (f" ({measured[key]})" if key in measured else "")
            for key in ("examples", "bank", "queries")
            if key in first
        )
        print(f"{kind} on {args.data} ({'; '.join(filter(None, (first.get('said'), numbers)))})")
        print(table(results))
