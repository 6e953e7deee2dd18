# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""CIFAR-10 on one core of a CPU: hf_ssl beside lightly, the same images, network, epochs, batch and precision.

Every run appends a line to `recipes/results/cifar10_cpu.jsonl`, from which the table beside it is written; runs that
are there are not repeated, so that it can be stopped and filled in pieces:

    OMP_NUM_THREADS=1 python tests/benchmarks/cifar10_cpu.py --data path/to/cifar10

"lightly" is lightly 1.6.0 (`pip install lightly==1.6.0`): its transforms, heads and losses in a plain loop of
PyTorch. "as lightly" is hf_ssl with the settings of its recipes `<method>/cifar10_resnet18_lightly`, "ours" with
those of `OURS`.

    --cells byol/ours/0 --output again.jsonl      one run once more, in a file of its own
    --validate --cells byol/ours/0 --set optim.lr=0.002
                                                  other settings, judged by training images that were held out; the
                                                  test images are not read
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch.utils.data import DataLoader

from hf_ssl.bench import _processor
from hf_ssl.bench.lightly import MODELS, Images, transform_of
from hf_ssl.data.bank import paired
from hf_ssl.data.modality import modality_of
from hf_ssl.data.sources import Source, load_source
from hf_ssl.evaluation.encoders import open_model
from hf_ssl.evaluation.features import encoder_embedding, extract
from hf_ssl.evaluation.images import raw_pixel_embedding
from hf_ssl.evaluation.knn import knn_accuracy
from hf_ssl.evaluation.linear import accuracy_of, logistic_regression
from hf_ssl.hub.card import versions
from hf_ssl.optim import build_optimizer, set_learning_rates
from hf_ssl.recipe import DataConfig, MonitorConfig, Recipe, load_recipe
from hf_ssl.resolve import resolve
from hf_ssl.training.pretrain import pretrain
from hf_ssl.training.setup import new_model


TRAIN, VALIDATION, TEST = 3000, 2000, 2000  # the first of train, those behind them, and the first of test
SEEDS = (0, 1, 2)
SIDES = {"lightly": "lightly 1.6.0", "as lightly": "hf_ssl, as lightly", "ours": "hf_ssl, ours"}
TITLES = {"barlow_twins": "Barlow Twins", "byol": "BYOL", "simsiam": "SimSiam", "swav": "SwAV"}
_START = {"lightly": "as lightly"}  # whose untrained networks are the same
RESULTS = Path(__file__).resolve().parents[2] / "recipes" / "results" / "cifar10_cpu.jsonl"

# What all runs have in common.
COMMON = [
    *("train.epochs=8", "train.batch_size=64", "train.precision=no", "train.checkpoint_every=8"),
    *("views.all.size=24", "views.photometric=fast", "data.num_workers=0", "data.label_column=null"),
    *("data.image_column=null", "monitor.every=0", "model.backbone=resnet10t"),
    "model.backbone_args={channels: [16, 32, 64, 128], stem_width: 8}",
]
# What was chosen with --validate, on top of the recipes <method>/cifar10_resnet18.
_ADAMW = [
    *("optim.name=adamw", "optim.lr_per=null", "optim.weight_decay=0.01", "optim.warmup_epochs=1"),
    *("optim.exclude_bias_and_norm=false", "views.all.scale=[0.2,1.0]"),
]
OURS: dict[str, list[str]] = {
    "barlow_twins": [*_ADAMW, "optim.lr=0.002", "optim.lr_bias_and_norm=null", "model.projector_dims=[512,512]"],
    "byol": [
        *(*_ADAMW, "optim.lr=0.004", "optim.fixed_predictor_lr=true", "views.preset=simsiam"),
        *("model.projector_hidden=512", "model.predictor_hidden=512", "model.tau_base=0.9"),
        "model.zero_init_residual=true",
    ],
    "simsiam": [
        *(*_ADAMW, "optim.lr=0.004"),
        *("model.projector_hidden=512", "model.projector_dim=512", "model.predictor_hidden=128"),
    ],
    "swav": [
        *(*_ADAMW, "optim.lr=0.004", "views.local.count=0", "model.projector_dims=[512,128]"),
        *("model.num_prototypes=64", "model.epsilon=0.03"),
    ],
}


def settings_of(method: str, side: str, seed: int, changes: Iterable[str] = ()) -> list[str]:
    """A shipped recipe, and what is changed of it; lightly's is read off that of "as lightly"."""
    name = f"{method}/cifar10_resnet18" + ("" if side == "ours" else "_lightly")
    return [name, *COMMON, *(OURS[method] if side == "ours" else []), f"train.seed={seed}", *changes]


def recipe_of(method: str, side: str, seed: int, changes: Iterable[str] = ()) -> Recipe:
    """What a run trains by."""
    name, *overrides = settings_of(method, side, seed, changes)
    recipe = load_recipe(name, overrides)
    if side == "lightly" and method == "byol":  # its loss is a quarter of ours
        optim = replace(recipe.optim, lr=4 * recipe.optim.lr, weight_decay=recipe.optim.weight_decay / 4)
        recipe = replace(recipe, optim=optim)
    return recipe


def train_lightly(recipe: Recipe, images: Source, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A plain loop around lightly's parts, from the weights of a timm network to the trained ones."""
    train, resolved = recipe.train, resolve(recipe)
    set_seed(train.seed)
    model: Any = MODELS[recipe.method](resolved.config)
    for part in (model.encoder, getattr(model, "target", [None])[0]):
        if part is not None:
            part.load_state_dict(weights)
    model = model.train().to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, recipe.optim, train.batch_size)
    views = Images(images, transform_of(recipe.method, resolved.views))
    loader: Any = DataLoader(views, train.batch_size, shuffle=True, drop_last=True)
    steps = round(train.epochs * len(loader)), len(loader)
    for step in range(steps[0]):
        if step % len(loader) == 0:
            batches = iter(loader)
        set_learning_rates(optimizer, recipe.optim, step, *steps)
        with torch.autocast("cpu", torch.bfloat16, enabled=train.precision == "bf16"):
            loss = model(next(batches))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return model.encoder.state_dict()


def measured(embed, transform, bank: Source, queries: Source) -> dict[str, float]:
    """kNN (k 200, T 0.1) and a logistic classifier on frozen features, in float32."""
    how: dict[str, Any] = {"device": torch.device("cpu"), "batch_size": 250}
    sides = [extract(embed, source, transform, **how)[""] for source in (bank, queries)]
    classifier, _ = logistic_regression(sides[0], cs=(0.001, 0.01, 0.1, 1.0))
    return {"knn": knn_accuracy(*sides, k=200, temperature=0.1), "linear": accuracy_of(classifier, sides[1])["top1"]}


def run(recipe: Recipe, side: str, bank: Source, queries: Source) -> dict[str, Any]:
    """One run: its figures before and after training, and what training cost."""
    config = resolve(recipe).config
    transform = modality_of(config).inference(config)
    set_seed(recipe.train.seed)
    start = new_model(recipe, config).encoder.eval()  # the weights from which `pretrain` starts, too
    found = {}
    if side != "lightly":  # it starts from the weights of "as lightly"
        before = measured(encoder_embedding(start), transform, bank, queries)
        found = {f"untrained_{name}": value for name, value in before.items()}
    begun, wall = time.process_time(), time.perf_counter()
    if side == "lightly":
        weights = train_lightly(recipe, bank, start.backbone.state_dict())
        seconds, waited = time.process_time() - begun, time.perf_counter() - wall
        start.load_encoder(weights, "lightly")
        found |= measured(encoder_embedding(start.eval()), transform, bank, queries)
    else:
        with tempfile.TemporaryDirectory() as folder:
            train = replace(recipe.train, output_dir=folder)
            result = pretrain(replace(recipe, train=train), bank.unlabeled().dataset)
            seconds, waited = time.process_time() - begun, time.perf_counter() - wall
            encoder = open_model(str(result.model_dir))
        found |= measured(encoder.embed, encoder.transform, bank, queries)
    found = {name: round(value, 5) for name, value in found.items()}
    seen = round(recipe.train.epochs * len(bank))
    return found | {"cpu_seconds": round(seconds, 1), "seconds": round(waited, 1), "images": seen}


def sources(data: str, validate: bool) -> tuple[Source, Source]:
    """The images that are trained on, which are also the bank, and those that are asked."""
    where = DataConfig(path=data, image_column="img", label_column="label")
    train = load_source(where, "train")
    bank = train.select(range(TRAIN))
    held_out = range(TRAIN, TRAIN + VALIDATION)
    queries = train.select(held_out) if validate else load_source(where, "test").select(range(TEST))
    return paired(bank, queries, MonitorConfig())


def raw_pixels(bank: Source, queries: Source) -> dict[str, Any]:
    config = resolve(recipe_of("simsiam", "ours", 0)).config
    found = measured(raw_pixel_embedding, modality_of(config).inference(config), bank, queries)
    return {name: round(value, 5) for name, value in found.items()}


def summary(values: list[float]) -> tuple[float, float]:
    """Mean and its standard error, in percent points where they are shares."""
    return statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def shown(values: list[float]) -> str:
    if not values:
        return ""
    mean, error = summary([100 * value for value in values])
    return f"{mean:.1f} ± {error:.1f}" if len(values) > 1 else f"{mean:.1f}"


def table(lines: list[dict[str, Any]]) -> list[str]:
    """Rows of Markdown: mean ± standard error over the seeds that are there."""
    rows = [
        "| method | | seeds | kNN | linear | kNN untrained | linear untrained | images/s | CPU minutes |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for method, title in TITLES.items():
        for side, name in SIDES.items():
            runs = [line for line in lines if (line["method"], line["side"]) == (method, side)]
            if not runs:
                rows.append(f"| {title} | {name} | 0 | not measured |" + " |" * 5)
                continue
            figures = [shown([one[key] for one in runs]) for key in ("knn", "linear")]
            before = [line for line in lines if line["method"] == method and line["side"] == _START.get(side, side)]
            figures += [shown([one[f"untrained_{key}"] for one in before]) for key in ("knn", "linear")]
            cost = statistics.mean(one["cpu_seconds"] for one in runs)
            figures += [f"{runs[0]['images'] / cost:.0f}", f"{cost / 60:.1f}"]
            rows.append(f"| {title} | {name} | {len(runs)} | {' | '.join(figures)} |")
    for line in lines:
        if line["method"] == "raw pixels":
            rows.append(f"| raw pixels | | | {line['knn']:.1%} | {line['linear']:.1%} |".replace("%", "") + " |" * 4)
    return rows


def verdicts(lines: list[dict[str, Any]]) -> list[str]:
    """A row a method: whether hf_ssl is as good as lightly with its settings, and better with its own."""
    rows = [
        "| method | as lightly - lightly, kNN | in standard errors | linear | in standard errors "
        "| ours - lightly, kNN | linear | ours - untrained, kNN |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]

    def differ(method: str, side: str, other: str, key: str, other_key: str) -> tuple[float, float]:
        ours, theirs = (
            summary([100 * line[k] for line in lines if (line["method"], line["side"]) == (method, one)])
            for one, k in ((side, key), (other, other_key))
        )
        return ours[0] - theirs[0], math.hypot(ours[1], theirs[1])

    for method, title in TITLES.items():
        if {side for line in lines if line["method"] == method for side in [line["side"]]} != set(SIDES):
            continue
        cells = []
        for key in ("knn", "linear"):
            by, error = differ(method, "as lightly", "lightly", key, key)
            cells += [f"{by:+.1f}", f"{abs(by) / error:.1f}" if error > 0 else ""]
        cells += [f"{differ(method, 'ours', 'lightly', key, key)[0]:+.1f}" for key in ("knn", "linear")]
        cells.append(f"{differ(method, 'ours', 'ours', 'knn', 'untrained_knn')[0]:+.1f}")
        rows.append(f"| {title} | {' | '.join(cells)} |")
    return rows


def write_page(lines: list[dict[str, Any]], page: Path) -> None:
    """Write both tables between the marks of the page, whose other words are written by hand."""
    text = page.read_text(encoding="utf-8") if page.exists() else "# CIFAR-10 on a CPU\n\n<!-- tables -->\n<!-- -->\n"
    head, _, rest = text.partition("<!-- tables -->\n")
    tail = rest.partition("<!-- -->\n")[2]
    made = "\n".join([*table(lines), "", *verdicts(lines)])
    page.write_text(f"{head}<!-- tables -->\n{made}\n<!-- -->\n{tail}", encoding="utf-8")


def read_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def append(file: Path, line: dict[str, Any]) -> None:
    line |= {"date": date.today().isoformat(), "processor": _processor(), "versions": versions()}
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(line) + "\n")
    print(json.dumps({k: v for k, v in line.items() if k not in ("versions", "settings", "processor")}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of CIFAR-10's Parquet files, or its name on the Hub")
    parser.add_argument("--cells", nargs="*", help="METHOD/SIDE/SEED; default: all")
    parser.add_argument("--validate", action="store_true", help="ask held-out images of train, not those of test")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="with --validate: other settings")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the file of lines; the table is beside it")
    args = parser.parse_args()
    if args.set and not args.validate:
        parser.error("--set needs --validate: settings are not chosen by test images.")
    torch.set_num_threads(1)
    cells = [f"{method}/{side}/{seed}" for seed in SEEDS for method in TITLES for side in SIDES]
    lines = read_lines(args.output)
    bank, queries = sources(args.data, args.validate)
    if not args.validate and not any(line["method"] == "raw pixels" for line in lines):
        append(args.output, {"method": "raw pixels", "side": "", "seed": 0, **raw_pixels(bank, queries)})
    for cell in args.cells or cells:
        method, side, seed = cell.split("/")
        named: dict[str, Any] = {"method": method, "side": side, "seed": int(seed)}
        settings = settings_of(**named, changes=args.set)
        same = [line for line in read_lines(args.output) if named.items() <= line.items()]
        if any(line["settings"] == settings for line in same):
            continue
        if same and not args.validate:
            parser.error(f"{args.output} has {cell} with other settings; remove its line first.")
        found = run(recipe_of(**named, changes=args.set), side, bank, queries)
        append(args.output, {**named, **found, "settings": settings})
        if not args.validate:
            write_page(read_lines(args.output), args.output.with_suffix(".md"))
    if not args.validate:
        write_page(read_lines(args.output), args.output.with_suffix(".md"))


if __name__ == "__main__":
    main()
