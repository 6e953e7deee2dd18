# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""`hf-ssl`: parses, and calls one function a command.

Exit codes: 0 done, 1 the run failed, 2 a mistake in the command or the recipe, 128+n stopped by signal n.
"""

import argparse
import errno
import json
import logging
import os
import signal
import sys

from .errors import RunError, UserError
from .recipe import RecipeError, load_recipe, recipe_header, shipped_recipes


_UNUSABLE = (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ELOOP)  # paths that no command can use

DESCRIPTION = "Self-supervised pretraining native to the Hugging Face ecosystem."

EXAMPLES = """\
examples:
  hf-ssl pretrain quickstart                                   real photographs, minutes on a laptop's CPU
  hf-ssl recipes                                               what ships with the package
  hf-ssl preview  barlow_twins/cifar10_resnet18 --images 6     what will the network see?
  hf-ssl plan     seer/regnety_10b --processes 496 --memory 80GiB
  hf-ssl pretrain my_images data.path=photos train.epochs=100  your own folder
  hf-ssl evaluate knn runs/quickstart --data recipes/quickstart
  hf-ssl push runs/quickstart user/name
  accelerate launch --config_file recipes/accelerate/ddp.yaml -m hf_ssl pretrain swav/imagenet1k_resnet50
"""

PRETRAIN_HELP = """\
Runs a recipe to its end and leaves under train.output_dir (runs/<recipe>):
  model/          the encoder for AutoModel and timm, the whole method in model/pretraining, the card
  checkpoints/    the newest ones; the same command continues from there after any interruption
  metrics.jsonl   loss, speed, kNN accuracy and collapse diagnostics, one line a measurement
  recipe.yaml     everything that decided the run

Any key of the recipe can be set behind it, for example:
  data.path=my/images          a folder, Parquet or tar files, a Hub dataset, a URL, or a list of these
  model.backbone=convnext_tiny any timm backbone
  train.batch_size=512         images of one step over all processes; the learning rate follows (optim.lr_per)
  train.epochs=100  train.precision=bf16  views.all.size=96  monitor.every=5  train.track=[trackio]
"""


def main(argv: list[str] | None = None) -> None:
    """Entry point of the console script."""
    if argv is None:  # a command of its own: Ctrl-C ends it at once, without a traceback
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("hf_ssl").setLevel(logging.INFO)
    try:
        if getattr(args, "own_method", None):
            from .methods import load_method

            load_method(args.own_method)
        args.command(args)
    except UserError as error:
        sys.stderr.write(f"hf-ssl: {error}\n")
        sys.exit(1 if isinstance(error, RunError) else 2)
    except OSError as error:
        if error.filename is None or error.errno not in _UNUSABLE:
            raise
        sys.stderr.write(f"hf-ssl: {str(error.filename)[:300]} cannot be used: {error.strerror}.\n")
        sys.exit(2)


def build_parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("hf-ssl", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=raw)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    command = commands.add_parser(
        "pretrain", help="train an encoder from a recipe", description=PRETRAIN_HELP, formatter_class=raw
    )
    _add_recipe(command)
    command.set_defaults(command=_pretrain)

    command = commands.add_parser(
        "preview",
        help="draw the views that a recipe shows the network",
        description="Writes a PNG, a row for each image, each view labeled with what was applied, and prints its "
        "path. Trains nothing.",
    )
    _add_recipe(command)
    command.add_argument("--images", type=int, default=4, metavar="N", help="number of images (default 4)")
    command.add_argument(
        "--output", default="preview.png", type=_path, metavar="FILE", help="the PNG (default preview.png)"
    )
    command.set_defaults(command=_preview)

    command = commands.add_parser(
        "recipes",
        help="list the recipes that ship with the package",
        description="Method, backbone, dataset and published result of every recipe; a word filters the list.",
    )
    command.add_argument("word", nargs="?", default="", help="only recipes whose line contains it")
    command.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    command.set_defaults(command=_recipes)

    command = commands.add_parser(
        "plan",
        help="what would one process of a large run need?",
        description="Memory, traffic and time of one process under FSDP2, by simulation: needs neither the machines "
        "nor the data.",
    )
    _add_recipe(command)
    command.add_argument("--processes", type=int, required=True, metavar="N", help="GPUs of the run")
    command.add_argument("--memory", metavar="SIZE", help="of one GPU, such as 80GiB: the largest batch that fits")
    command.add_argument("--images-per-second", type=float, metavar="X", help="of all GPUs together: hours of the run")
    command.add_argument("--precision", choices=("bf16", "fp16", "no"), default="bf16", help="(default bf16)")
    command.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    command.set_defaults(command=_plan)

    command = commands.add_parser(
        "card",
        help="write the card of an exported model anew, with its licence, name and data",
        description="README.md from the folder's results.json, recipe.yaml and pretraining/config.json: the run's own "
        "figures, beside the published ones. What is given here is kept for the next time, and an empty text takes it "
        "back; what was written into README.md by hand is not.",
    )
    command.add_argument("folder", type=_path, help="a run's folder, or an exported model's")
    _add_own_method(command)
    command.add_argument("--license", metavar="NAME", help="of the weights, as the Hub calls it: apache-2.0, mit ...")
    command.add_argument("--name", metavar="TEXT", help="the model's name (default: method and backbone)")
    command.add_argument(
        "--datasets", nargs="+", metavar="ID", help="Hub names of what it was trained on (default: data.path)"
    )
    command.set_defaults(command=_card)

    command = commands.add_parser(
        "export",
        help="write the folder to share of a checkpoint, or an encoder for serving",
        description="Of a run (its newest checkpoint) or of one of its checkpoints: the folder that `hf-ssl push` "
        "publishes. With --onnx or --torch: the encoder of a run, folder or Hub id as one graph with a batch of any "
        "size, which is run against the model.",
    )
    command.add_argument(
        "place", type=_path, help="a run's folder or checkpoint; with --onnx, --torch also a model's folder or Hub id"
    )
    command.add_argument("--output", metavar="PATH", type=_path, help="default: the run's model/, and a file in it")
    _add_own_method(command)
    kind = command.add_mutually_exclusive_group()
    kind.add_argument("--onnx", action="store_true", help="encoder.onnx")
    kind.add_argument("--torch", action="store_true", help="encoder.pt2, a torch.export program")
    command.set_defaults(command=_export)

    command = commands.add_parser(
        "convert",
        help="turn the authors' released weights into an exported model, and back",
        description="FILE --method M: which network it is, is told from its tensors; a file is never executed. FOLDER "
        "--to LAYOUT: the original names again (avid, barlow_twins, byol, simsiam, swav, swav-linear, timm, "
        "torchvision, vissl, vissl-grouped).",
    )
    command.add_argument("path", type=_path, help="an original checkpoint, or with --to an exported model's folder")
    command.add_argument("--method", metavar="M", help="avid, barlow_twins, byol, simsiam, swav, seer or vissl")
    command.add_argument(
        "--classifier", metavar="FILE", type=_path, help="the file of SwAV's linear evaluation, to go with it"
    )
    command.add_argument(
        "--statistics",
        metavar="FILE",
        type=_path,
        help="AVID's audio-spectDB-24k-513-norm-stats.npz: mean and std of every band",
    )
    command.add_argument("--to", metavar="LAYOUT", help="back to the original")
    command.add_argument(
        "--output", metavar="PATH", type=_path, help="folder (default: the file's name); with --to, a file"
    )
    command.set_defaults(command=_convert)

    command = commands.add_parser(
        "push",
        help="publish an exported model on the Hugging Face Hub",
        description="One commit, whole or not at all; after a failure the same command sends what is missing. Log in "
        "first with `hf auth login`.",
    )
    command.add_argument("folder", type=_path, help="a run's folder, or an exported model's")
    command.add_argument("name", help="user/name or organisation/name; made if it does not exist")
    command.add_argument("--private", action="store_true", default=None, help="if it is made, others cannot see it")
    command.add_argument("--revision", metavar="BRANCH", help="default: main; made if it does not exist")
    command.set_defaults(command=_push)

    evaluate = commands.add_parser("evaluate", help="measure a trained encoder")
    protocols = evaluate.add_subparsers(metavar="PROTOCOL", required=True)
    about = {
        "knn": "weighted k-nearest-neighbour accuracy on frozen features",
        "linear": "accuracy of a linear classifier on frozen features",
        "retrieval": "find a video's sound among that of all others, and the reverse (AVID)",
    }
    for protocol, text in about.items():
        command = protocols.add_parser(protocol, help=text, description=f"{text[0].upper()}{text[1:]}.")
        command.add_argument("model", type=_path, help="a run's folder, an exported model's folder, or a Hub id")
        command.add_argument("--data", required=True, type=_path, help="dataset: folder, Parquet file or Hub id")
        _add_own_method(command)
        command.add_argument("--query-split", default="test", help="split that is judged (default test)")
        if protocol != "retrieval":
            command.add_argument("--bank-split", default="train", help="split whose labels are used (default train)")
            command.add_argument("--image-column", help="found by its type when there is one")
            command.add_argument("--label-column", help="found by its type when there is one")
        if protocol == "knn":
            command.add_argument("--k", type=int, default=20, help="neighbours (default 20)")
            command.add_argument("--temperature", type=float, default=0.1, help="of the vote's weights (default 0.1)")
        if protocol == "linear":
            command.add_argument("--classifier", choices=("logistic", "svm"), default="logistic")
            command.add_argument(
                "--folds", metavar="COLUMN", help="of fold numbers: their mean, in place of two splits"
            )
        command.add_argument(
            "--value-range",
            nargs="+",
            metavar=("full|LOW", "HIGH"),
            help="black and white of files deeper than 8 bits, as data.value_range in training",
        )
        command.add_argument("--clips", type=int, default=10, help="of a video or sound, averaged (default 10)")
        command.add_argument("--batch-size", type=int, default=256)
        command.add_argument("--num-workers", type=int, default=2, help="loader processes (default 2)")
        command.add_argument("--json", action="store_true", help="print one JSON object")
        command.set_defaults(command=_evaluate, protocol=protocol)
    return parser


def _path(text: str) -> str:
    """A place as given; the shell leaves the ~ of --data=~/images alone."""
    return os.path.expanduser(text)


def _add_own_method(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--method",
        dest="own_method",
        metavar="FILE.py:CLASS",
        help="the method of one's own that the run was trained with; what a folder names is never imported",
    )


def _add_recipe(command: argparse.ArgumentParser) -> None:
    command.add_argument("recipe", type=_path, help="a YAML file, or a name from `hf-ssl recipes`")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the recipe to change")


def _pretrain(args: argparse.Namespace) -> None:
    recipe = load_recipe(args.recipe, args.overrides)
    from accelerate import PartialState

    from .training.pretrain import pretrain
    from .training.signals import Interrupted

    try:
        result = pretrain(recipe)
    except Interrupted as stop:
        sys.stderr.write(f"hf-ssl: {stop}\n")
        sys.exit(128 + stop.signum)
    PartialState().destroy_process_group()
    if result.is_main_process:
        _print_result(result, recipe.monitor.k, recipe.start)


def _print_result(result, k: int, start: str) -> None:
    if "knn" in result.final and "knn" in result.baseline:
        print(f"\nkNN accuracy (k={k})")
        if result.measured:  # unknown of a model of before
            print(f"  on {result.measured['num_queries']:,} images: {result.measured['queries']}")
        print(f"  raw pixels        {result.baseline['knn_raw_pixels']:6.1%}")
        print(f"  {f'{start} network':18}{result.baseline['knn']:6.1%}")
        print(f"  trained network   {result.final['knn']:6.1%}")
    elif "video_to_audio_r1" in result.final:
        from .hub.card import ROWS

        print(f"\n{'':47}{start:>10}  trained")
        for key, label, form in ROWS:
            if key.startswith(("knn_", "video_", "audio_", "positive_")) and key in result.final:
                before = form.format(result.baseline[key]) if key in result.baseline else ""
                print(f"  {label:46}{before:>9}{form.format(result.final[key]):>9}")
    print(f"\nThe model is in {result.model_dir}. Load the encoder with")
    trust = ", trust_remote_code=True" if result.needs_code else ""
    print(f'  AutoModel.from_pretrained("{result.model_dir}"{trust})')


def _preview(args: argparse.Namespace) -> None:
    recipe = load_recipe(args.recipe, args.overrides)
    from .preview import preview

    print(preview(recipe, num_images=args.images, output=args.output))


def _plan(args: argparse.Namespace) -> None:
    recipe = load_recipe(args.recipe, args.overrides)
    from .plan import parse_memory, plan, table

    memory = None if args.memory is None else parse_memory(args.memory)
    result = plan(
        recipe,
        args.processes,
        precision=args.precision,
        memory=memory,
        images_per_second=args.images_per_second,
    )
    print(json.dumps(result) if args.json else table(result))


def _card(args: argparse.Namespace) -> None:
    from .hub.refresh import refresh_card

    print(refresh_card(args.folder, license=args.license, name=args.name, datasets=args.datasets))


def _export(args: argparse.Namespace) -> None:
    if args.onnx or args.torch:
        from .hub.serve import export_for_serving

        file, error = export_for_serving(args.place, args.output, onnx=args.onnx)
        print(f"{file}: its outputs differ from the model's by {error:.1e} at most, relative to the largest")
        return
    from .hub.export import export_checkpoint

    print(export_checkpoint(args.place, args.output))


def _convert(args: argparse.Namespace) -> None:
    from .hub.convert import convert, convert_back

    if args.to and args.output:
        print(convert_back(args.path, args.to, args.output))
    elif args.method and not args.to:
        more = {"classifier": args.classifier, "statistics": args.statistics}
        print(convert(args.path, args.method, args.output, **more))
    else:
        raise RecipeError("Give --method for an original checkpoint, or --to with --output for the way back.")


def _push(args: argparse.Namespace) -> None:
    from .hub.push import push

    print(push(args.folder, args.name, private=args.private, revision=args.revision))


def _recipes(args: argparse.Namespace) -> None:
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


def _evaluate(args: argparse.Namespace) -> None:
    from .coerce import build
    from .evaluation.evaluate import evaluate
    from .recipe import DataConfig, MonitorConfig

    given = {key: value for key, value in vars(args).items() if value is not None}
    for name in ("k", "temperature", "clips", "batch_size"):
        if given.get(name, 1) <= 0:
            raise RecipeError(f"--{name.replace('_', '-')} must be greater than 0, not {given[name]}.")
    if args.num_workers < 0:
        raise RecipeError(
            f"--num-workers must not be negative, it is {args.num_workers}; 0 reads in the process itself."
        )
    names = ("bank_split", "query_split", "image_column", "label_column", "k", "temperature", "batch_size")
    monitor = MonitorConfig(path=args.data, **{name: given[name] for name in names if name in given})
    more = {key: given[key] for key in ("folds", "classifier") if key in given}
    content = {"path": args.data, "num_workers": args.num_workers, "value_range": _value_range(args.value_range)}
    data = build(DataConfig, content, "data.")
    result = evaluate(args.protocol, args.model, data, monitor, num_clips=args.clips, **more)
    if args.json:
        print(json.dumps(result))
        return
    if result["failed"]:
        failed = result["failed"]
        sys.stderr.write(f"{len(failed)} file(s) could not be read and are not counted, the first is {failed[0]}.\n")
    measured = result["measured"]
    numbers = ", ".join(
        f"{result[key]:,} {key}" + (f" ({measured[key]})" if key in measured else "")
        for key in ("examples", "bank", "queries")
        if key in result
    )
    detail = {"knn": f"k={monitor.k}, T={monitor.temperature}; ", "linear": f"{given.get('classifier')}; "}
    print(f"{args.protocol} of {args.model} on {args.data} ({detail.get(args.protocol, '')}{numbers})")
    for key, value in result.items():
        if key not in ("failed", "measured", "examples", "bank", "queries"):
            print(f"  {key:28}{value:8.1f}" if key.endswith("rank") else f"  {key:28}{value:8.2%}")
