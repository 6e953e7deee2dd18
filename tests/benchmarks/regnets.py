# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Does accuracy rise with size after SEER's kind of pretraining? A small answer, for docs/published.md.

    python tests/benchmarks/regnets.py --wild path/to/wild --labeled path/to/caltech101 [--seeds 2] [--steps 312]

RegNets of three sizes: SwAV on a stream of uncurated photographs (`seer/wild_small`), then fine-tuned on labeled ones,
beside the same network from scratch. Appends one line a run to recipes/results/regnets.jsonl and leaves out those that
are there, so that it can be filled in pieces; then run `python docs/make_published.py`.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoModel

import hf_ssl.models  # noqa: F401  # registers the classes
from hf_ssl.evaluation.evaluate import evaluate
from hf_ssl.evaluation.protocols import PROTOCOLS
from hf_ssl.recipe import DataConfig, MonitorConfig, TrainConfig, load_recipe
from hf_ssl.training.pretrain import pretrain
from hf_ssl.training.supervised import supervised


RESULTS = Path(__file__).parents[2] / "recipes" / "results" / "regnets.jsonl"
BACKBONES = ("regnety_002", "regnety_004", "regnety_008")


def measure(backbone: str, seed: int, args: argparse.Namespace, folder: Path) -> dict:
    began = time.process_time()
    recipe = load_recipe(
        "seer/wild_small",
        [f"data.path={args.wild}", f"model.backbone={backbone}", f"train.seed={seed}", f"train.steps={args.steps}"]
        + [f"train.output_dir={folder / 'run'}", "data.num_workers=0", "train.precision=no", "monitor.every=0"],
    )
    trained = pretrain(recipe).model_dir
    torch.manual_seed(seed)
    fresh = AutoModel.from_config(AutoModel.from_pretrained(trained).config)
    fresh.save_pretrained(folder / "fresh")
    data = DataConfig(path=args.labeled, num_workers=0)
    monitor = MonitorConfig(max_bank=args.images, max_queries=args.images)
    settings = replace(PROTOCOLS["finetune"]["small"], epochs=args.epochs, seeds=1)
    figures = {}
    for name, model in (("finetuned", trained), ("from_scratch", folder / "fresh")):
        where = {"folder": folder / name, "seed": seed, "train": TrainConfig(precision="no")}
        figures[name] = supervised(str(model), data, monitor, settings, **where)["finetune"]
    figures["knn"] = evaluate("knn", str(trained), data, monitor)["knn"]
    about = {"backbone": backbone, "seed": seed, "steps": args.steps, "epochs": args.epochs, "images": args.images}
    seconds = round(time.process_time() - began)
    return about | {"params": sum(p.numel() for p in fresh.parameters()), "cpu_seconds": seconds} | figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--wild", required=True)
    parser.add_argument("--labeled", required=True)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=312)
    parser.add_argument("--epochs", type=float, default=20)
    parser.add_argument("--images", type=int, default=2020, help="labeled ones, of train and of test")
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = RESULTS.read_text().splitlines() if RESULTS.is_file() else []
    there = {(line["backbone"], line["seed"]) for line in map(json.loads, lines)}
    for seed in range(args.seeds):
        for backbone in BACKBONES:
            if (backbone, seed) in there:
                continue
            with tempfile.TemporaryDirectory() as folder:
                line = measure(backbone, seed, args, Path(folder))
            with RESULTS.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(line)


if __name__ == "__main__":
    main()
