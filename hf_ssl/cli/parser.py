# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""What can be said on the command line."""

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
  hf-ssl data photos                                           what is in there?
  hf-ssl recipes                                               what ships with the package
  hf-ssl preview  barlow_twins/cifar10_resnet18 --images 6     what will the network see?
  hf-ssl plan     seer/regnety_10b --processes 496 --memory 80GiB
  hf-ssl pretrain my_images data.path=photos train.epochs=100  your own folder
  hf-ssl evaluate knn runs/quickstart --data quickstart
  hf-ssl push runs/quickstart user/name
  hf-ssl recipes accelerate/ddp --copy                         a file for all GPUs of a machine; then
  accelerate launch --config_file recipes/accelerate/ddp.yaml -m hf_ssl pretrain swav/imagenet1k_resnet50
"""

PRETRAIN_HELP = """\
Runs a recipe to its end and leaves under train.output_dir (runs/<recipe>):
  model/          the encoder for AutoModel and timm, the whole method in model/pretraining, the card
  checkpoints/    the newest ones; the same command continues from there after any interruption
  report.html     curves, a map, neighbors (where hf_ssl[report] is installed)
  metrics.jsonl   loss, speed, kNN accuracy and collapse diagnostics, one line a measurement
  recipe.yaml     everything that decided the run

Any key of the recipe can be set behind it, for example:
  data.path=my/images          a folder, Parquet or tar files, a Hub dataset, a URL, or a list of these
  model.backbone=convnext_tiny any timm backbone
  train.batch_size=512         images of one step over all processes; the learning rate follows (optim.lr_per)
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
        help="draw the views that a recipe shows the network",
        description="Writes a PNG, a row for each image, each view labeled with what was applied, and prints its "
        "path. Trains nothing.",
    )
    _add_recipe(command)
    command.add_argument("--images", type=int, default=4, metavar="N", help="number of images (default 4)")
    command.add_argument(
        "--output", default="preview.png", type=_path, metavar="FILE", help="the PNG (default preview.png)"
    )
    command.add_argument("--overwrite", action="store_true", help="replace the file if there is one")
    command.set_defaults(command=commands.preview_command)

    command = subparsers.add_parser(
        "recipes",
        help="list the recipes that ship with the package, or copy one",
        description="Method, backbone, dataset and published result of every recipe; a word filters the list. --copy "
        "writes the recipe of that name into a folder, or an Accelerate configuration (accelerate/ddp, accelerate/gpu "
        "...) or a cluster file (cluster/seer) into recipes/ there; no file is overwritten.",
    )
    command.add_argument("word", nargs="?", default="", help="only recipes whose line contains it")
    command.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    command.add_argument(
        "--copy", nargs="?", const=".", type=_path, metavar="FOLDER", help="copy the file of this name (default: here)"
    )
    command.set_defaults(command=commands.recipes_command)

    command = subparsers.add_parser(
        "plan",
        help="what would one process of a large run need?",
        description="Memory, traffic and time of one process under FSDP2, by simulation: needs neither the machines "
        "nor the data. Without --processes: on this machine, with its GPUs or one CPU process, memory and precision.",
    )
    _add_recipe(command)
    command.add_argument("--processes", type=int, metavar="N", help="GPUs of the run (default: this machine's)")
    command.add_argument("--memory", metavar="SIZE", help="of one GPU, such as 80GiB: the largest batch")
    command.add_argument("--images-per-second", type=float, metavar="X", help="of all GPUs together: hours of the run")
    command.add_argument("--precision", choices=("bf16", "fp16", "no"), help="(default bf16)")
    command.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    command.set_defaults(command=commands.plan_command)

    command = subparsers.add_parser(
        "bench",
        help="images per second of the data, of the step and of both, and where the time goes",
        epilog="nothing of the run is kept; several times over, in turn: medians with their range",
    )
    _add_recipe(command)
    command.add_argument(
        "--against",
        choices=("lightly",),
        help="its data, heads and loss in the same sizes, if it is there",
    )
    command.add_argument("--repeats", type=int, default=5, help="of every measurement (default 5)")
    command.add_argument("--seconds", type=float, default=2.0, help="that each takes at least (default 2)")
    command.add_argument(
        "--cpu-seconds", action="store_true", help="CPU seconds of one thread without workers, for comparisons"
    )
    command.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    command.set_defaults(command=commands.bench_command)

    command = subparsers.add_parser(
        "card",
        help="write the card of an exported model anew, with its license, name and data",
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
    command.set_defaults(command=commands.card_command)

    command = subparsers.add_parser(
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
    command.set_defaults(command=commands.export_command)

    command = subparsers.add_parser(
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
    command.set_defaults(command=commands.convert_command)

    command = subparsers.add_parser(
        "push",
        help="publish an exported model on the Hugging Face Hub",
        description="One commit, whole or not at all; after a failure the same command sends what is missing. Log in "
        "first with `hf auth login`.",
    )
    command.add_argument("folder", type=_path, help="a run's folder, or an exported model's")
    command.add_argument("name", help="user/name or organization/name; made if it does not exist")
    command.add_argument("--private", action="store_true", default=None, help="if it is made, others cannot see it")
    command.add_argument("--revision", metavar="BRANCH", help="default: main; made if it does not exist")
    command.set_defaults(command=commands.push_command)

    add_evaluate(subparsers)
    look.add_env(subparsers)

    command = subparsers.add_parser(
        "report",
        help="what a run has learned, as one page",
        description="Writes report.html: a verdict, curves, and of the finished model a map, neighbors and feature "
        "maps. Several runs are compared. Opens from the disk, without a network.",
    )
    command.add_argument("runs", nargs="+", metavar="RUN", type=_path, help="a run's folder")
    command.add_argument("--data", type=dataset, help="for the pictures (default: what the run was measured on)")
    command.add_argument("--output", type=_path, metavar="FILE", help="(default: report.html in the run's folder)")
    _add_own_method(command)
    command.set_defaults(command=commands.report_command)

    add_embed(subparsers)
    return parser


def _add_recipe(command: argparse.ArgumentParser) -> None:
    command.add_argument("recipe", type=_path, help="a YAML file, or a name from `hf-ssl recipes`")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the recipe to change")
