# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""The command line: commands, options and help texts."""

import argparse

from .. import __version__
from . import commands, look
from .evaluation import add_embed, add_evaluate
from .options import add_own_method as _add_own_method
from .options import dataset
from .options import path as _path


DESCRIPTION = "Self-supervised pretraining native to the Hugging Face ecosystem."

EXAMPLES = """\
examples:
  hf-ssl pretrain quickstart                                   real photographs, minutes on a laptop's CPU
  hf-ssl data photos                                           what is in it?
  hf-ssl recipes                                               the recipes that ship with the package
  hf-ssl preview  barlow_twins/cifar10_resnet18 --images 6     what will the network see?
  hf-ssl plan     seer/regnety_10b --processes 496 --memory 80GiB
  hf-ssl pretrain my_images data.path=photos train.epochs=100  your own folder
  hf-ssl evaluate knn runs/quickstart --data quickstart
  hf-ssl push runs/quickstart user/name
  hf-ssl recipes accelerate/ddp --copy                         an Accelerate configuration for all GPUs; then
  accelerate launch --config_file recipes/accelerate/ddp.yaml -m hf_ssl pretrain swav/imagenet1k_resnet50
"""

PRETRAIN_HELP = """\
Run a recipe. The results are in train.output_dir (default: runs/<recipe>):
  model/          the encoder for AutoModel and timm, the whole method in model/pretraining, the model card
  checkpoints/    the most recent ones; after an interruption, the same command continues from there
  report.html     curves, a map, neighbors (if hf_ssl[report] is installed)
  metrics.jsonl   loss, speed, kNN accuracy and collapse diagnostics, one line per measurement
  recipe.yaml     the complete recipe of the run

Override any key of the recipe on the command line, for example:
  data.path=my/images          a folder, Parquet or tar files, a Hub dataset, a URL, or a list of these
  model.backbone=convnext_tiny any timm backbone
  train.batch_size=512         images per step over all processes; the learning rate scales with it (optim.lr_per)
  train.epochs=100  train.precision=bf16  views.all.size=96  monitor.every=5  train.track=[trackio]
"""


def build_parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("hf-ssl", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=raw)
    parser.add_argument("--version", action="version", version=f"hf_ssl {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)

    command = subparsers.add_parser(
        "pretrain", help="train an encoder from a recipe", description=PRETRAIN_HELP, formatter_class=raw
    )
    _add_recipe(command)
    command.set_defaults(command=commands.pretrain_command)

    look.add_data(subparsers, _path)

    command = subparsers.add_parser(
        "preview",
        help="draw the views that the network will see",
        description="Write a PNG with one row per image, each view labeled with its augmentations, and print its "
        "path. Nothing is trained.",
    )
    _add_recipe(command)
    command.add_argument("--images", type=int, default=4, metavar="N", help="number of images (default 4)")
    command.add_argument(
        "--output", default="preview.png", type=_path, metavar="FILE", help="the PNG (default preview.png)"
    )
    command.add_argument("--overwrite", action="store_true", help="replace an existing file")
    command.set_defaults(command=commands.preview_command)

    command = subparsers.add_parser(
        "recipes",
        help="list the recipes that ship with the package, or copy one",
        description="List method, backbone, dataset and published result of every recipe, or only the lines with a "
        "word. --copy copies the named recipe into a folder, or an Accelerate configuration (accelerate/ddp, "
        "accelerate/gpu ...) or cluster file (cluster/seer) into its recipes/; existing files are not overwritten.",
    )
    command.add_argument("word", nargs="?", default="", help="list only recipes whose line contains it")
    command.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    command.add_argument(
        "--copy",
        nargs="?",
        const=".",
        type=_path,
        metavar="FOLDER",
        help="copy the named file into FOLDER (default: here)",
    )
    command.set_defaults(command=commands.recipes_command)

    command = subparsers.add_parser(
        "plan",
        help="estimate memory, traffic and time of a large run",
        description="Simulate one process of a run under FSDP2 and report its memory, traffic and time; needs neither "
        "the machines nor the data. Without --processes: this machine, with its GPUs (or one CPU process), memory and "
        "precision.",
    )
    _add_recipe(command)
    command.add_argument("--processes", type=int, metavar="N", help="number of GPUs (default: this machine's)")
    command.add_argument(
        "--memory", metavar="SIZE", help="memory of one GPU, such as 80GiB, to find the largest batch"
    )
    command.add_argument(
        "--images-per-second",
        type=float,
        metavar="X",
        help="throughput of all GPUs together, to estimate the duration",
    )
    command.add_argument("--precision", choices=("bf16", "fp16", "no"), help="precision (default bf16)")
    command.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    command.set_defaults(command=commands.plan_command)

    command = subparsers.add_parser(
        "bench",
        help="measure throughput (data, step, both) and where the time goes",
        epilog="Nothing of the run is kept. Measurements alternate and are repeated; medians and ranges are shown.",
    )
    _add_recipe(command)
    command.add_argument(
        "--against",
        choices=("lightly",),
        help="also measure its data, heads and loss with the same sizes, if it is installed",
    )
    command.add_argument("--repeats", type=int, default=5, help="repeats of each measurement (default 5)")
    command.add_argument("--seconds", type=float, default=2.0, help="minimum duration of each measurement (default 2)")
    command.add_argument(
        "--cpu-seconds", action="store_true", help="count CPU seconds of one thread without workers, for comparisons"
    )
    command.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    command.set_defaults(command=commands.bench_command)

    command = subparsers.add_parser(
        "card",
        help="regenerate an exported model's card, with its license, name and data",
        description="Write README.md from the folder's results.json, recipe.yaml and pretraining/config.json, with "
        "the run's figures next to published ones. Values are saved and reused; pass an empty string to remove one. "
        "Manual edits to README.md are overwritten.",
    )
    command.add_argument("folder", type=_path, help="a run's folder, or an exported model")
    _add_own_method(command)
    command.add_argument("--license", metavar="NAME", help="the Hub's name of the license: apache-2.0, mit ...")
    command.add_argument("--name", metavar="TEXT", help="the model's name (default: method and backbone)")
    command.add_argument(
        "--datasets", nargs="+", metavar="ID", help="Hub names of the training data (default: data.path)"
    )
    command.set_defaults(command=commands.card_command)

    command = subparsers.add_parser(
        "export",
        help="export a checkpoint as a model folder, or an encoder for serving",
        description="Export a checkpoint, or the latest one of a run, as the folder that `hf-ssl push` publishes. "
        "With --onnx or --torch: export the encoder of a run, folder or Hub id as a graph with a dynamic batch size; "
        "its output is checked against the model.",
    )
    command.add_argument(
        "place", type=_path, help="a run's folder or checkpoint; with --onnx or --torch also a model folder or Hub id"
    )
    command.add_argument(
        "--output", metavar="PATH", type=_path, help="folder or file (default: the run's model/, or a file in it)"
    )
    _add_own_method(command)
    kind = command.add_mutually_exclusive_group()
    kind.add_argument("--onnx", action="store_true", help="write encoder.onnx")
    kind.add_argument("--torch", action="store_true", help="write encoder.pt2, a torch.export program")
    command.set_defaults(command=commands.export_command)

    command = subparsers.add_parser(
        "convert",
        help="convert the authors' released weights to an exported model, and back",
        description="FILE --method M converts a checkpoint; its tensors determine the network, and the file is never "
        "executed. FOLDER --to LAYOUT restores the original names (avid, barlow_twins, byol, simsiam, swav, "
        "swav-linear, timm, torchvision, vissl, vissl-grouped).",
    )
    command.add_argument("path", type=_path, help="an original checkpoint, or with --to an exported model")
    command.add_argument("--method", metavar="M", help="avid, barlow_twins, byol, simsiam, swav, seer or vissl")
    command.add_argument(
        "--classifier", metavar="FILE", type=_path, help="SwAV's linear classifier, to convert along with the encoder"
    )
    command.add_argument(
        "--statistics",
        metavar="FILE",
        type=_path,
        help="AVID's audio-spectDB-24k-513-norm-stats.npz, with mean and std of each band",
    )
    command.add_argument("--to", metavar="LAYOUT", help="convert back to this layout")
    command.add_argument(
        "--output", metavar="PATH", type=_path, help="folder (default: the file's name); with --to, a file"
    )
    command.set_defaults(command=commands.convert_command)

    command = subparsers.add_parser(
        "push",
        help="publish an exported model on the Hugging Face Hub",
        description="Publish in a single commit; after a failure, the same command uploads only what is missing. Log "
        "in first with `hf auth login`.",
    )
    command.add_argument("folder", type=_path, help="a run's folder, or an exported model")
    command.add_argument("name", help="user/name or organization/name; created if it does not exist")
    command.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    command.add_argument("--revision", metavar="BRANCH", help="branch (default: main); created if it does not exist")
    command.set_defaults(command=commands.push_command)

    add_evaluate(subparsers)
    look.add_env(subparsers)

    command = subparsers.add_parser(
        "report",
        help="write a one-page HTML report of a run",
        description="Write report.html: a verdict, curves and, for a finished model, a map, neighbors and feature "
        "maps. Several runs are compared. The page needs no network.",
    )
    command.add_argument("runs", nargs="+", metavar="RUN", type=_path, help="a run's folder")
    command.add_argument("--data", type=dataset, help="images to show (default: the run's evaluation data)")
    command.add_argument(
        "--output", type=_path, metavar="FILE", help="output file (default: report.html in the run's folder)"
    )
    _add_own_method(command)
    command.set_defaults(command=commands.report_command)

    add_embed(subparsers)
    return parser


def _add_recipe(command: argparse.ArgumentParser) -> None:
    command.add_argument("recipe", type=_path, help="a YAML file, or a name from `hf-ssl recipes`")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="override keys of the recipe")
