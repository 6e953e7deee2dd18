# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Classifiers trained by gradient descent: linear heads on a frozen encoder, and fine-tuning.

As in pretraining, a killed run resumes exactly, and the result does not depend on the number of processes.
"""

import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import xxhash
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed

from ..data.bank import labeled_sources, measured_on, place_in_class
from ..data.images import ImageInference, ImageTransform, LabeledViews
from ..data.loader import TrainLoader, steps_in_epoch
from ..data.sources import Source
from ..data.views import View
from ..devices import process_state
from ..disk import atomic_write
from ..errors import RecipeError
from ..evaluation.encoders import Encoder, open_model
from ..evaluation.features import embedded
from ..evaluation.protocols import Supervised
from ..evaluation.scores import Scores, spread, standard_error
from ..evaluation.store import key_of
from ..optim.larc import Larc
from ..recipe import DataConfig, MonitorConfig, TrainConfig
from .accelerator import build_accelerator
from .classifiers import network_of, normalization_of, size_of
from .loop import Plan, train_steps


_HELD_OUT = 10  # one in ten examples of each class is held out to choose the learning rate
_CROP = View(scale=(0.08, 1.0), jitter=(0, 0, 0, 0), jitter_prob=0, grayscale=0, blur=0)


def supervised(
    model: str,
    data: DataConfig,
    monitor: MonitorConfig,
    settings: Supervised,
    *,
    folder: Path,
    protocol: str = "finetune",
    seed: int = 0,
    train: TrainConfig | None = None,
) -> dict[str, Any]:
    """Train and evaluate a classifier; every process must call it.

    Args:
        model: see `open_model`.
        folder: for checkpoints, so that a killed run resumes, and for the finished results of each seed.

    Returns:
        As `hf_ssl.evaluation.evaluate.evaluate`: mean, spread and standard error over `settings.seeds`.

    Raises:
        RecipeError: the model or the data do not fit the protocol.
        Interrupted: stopped by a signal.
    """
    process_state()
    encoder = open_model(model, pooler=settings.frozen)
    if (towers := encoder.modality.towers) != ("",):
        raise RecipeError(
            f"{model} has the towers {' and '.join(towers)}, but {protocol} trains on images only; use `hf-ssl "
            "evaluate linear` with its default --protocol."
        )
    bank, queries = labeled_sources(data, monitor, encoder.modality.medium, trained_on=False)
    if bank is None or queries is None:
        raise RecipeError(f"{data.path} has no labels to train with; see --label-column.")
    measured = measured_on(bank, queries, 0)
    seeds = range(seed, seed + settings.seeds)
    task = Task(encoder, settings, data, monitor, train or TrainConfig())
    found = [_of_seed(task, bank, queries, folder / f"seed{number}", number) for number in seeds]
    no_figures = ("lr", "failed", "errors")
    over = {key: spread([one[key] for one in found]) for key in found[0] if key not in no_figures}
    several = settings.seeds > 1
    errors = {key: one["standard_error"] for key, one in over.items()}
    if not several:
        shares = {key: standard_error(over[key]["value"], len(queries)) for key in over if key != "mean_per_class"}
        errors = shares | found[0].get("errors", {})  # results of earlier versions have none
    names = {key: protocol if key == "top1" else f"{protocol}_{key}" for key in over}
    values = {names[key]: one for key, one in over.items()}
    errors = {names[key]: one for key, one in errors.items()}
    result: dict[str, Any] = {key: one["value"] for key, one in values.items()}
    result |= {"failed": found[0]["failed"], "bank": len(bank), "queries": len(queries), "errors": errors}
    result |= {"spread": {key: one["spread"] for key, one in values.items()} if several else {}}
    result |= {"chosen": {"lr": found[0]["lr"]} if len(settings.lr) > 1 else {}, "measured": measured}
    return result | {"protocol": protocol, "settings": asdict(settings), "said": settings.said()}


@dataclass(frozen=True)
class Task:
    """A classification task, independent of the seed."""

    encoder: Encoder
    settings: Supervised
    data: DataConfig
    monitor: MonitorConfig
    train: TrainConfig


@dataclass
class Trial:
    """One seed of a task."""

    task: Task
    seed: int
    encoder: Encoder
    network: Any
    accelerator: Accelerator
    size: int
    classes: int
    failed: list[str] = field(default_factory=list)  # unreadable training files


def _of_seed(task: Task, bank: Source, queries: Source, folder: Path, seed: int) -> dict[str, Any]:
    """Accuracies for one seed, read from `folder` if already finished."""
    settings, encoder = task.settings, task.encoder
    about: list[Any] = [encoder.name, asdict(settings), seed]
    about += [key_of(encoder, source, task.train.precision or "") for source in (bank, queries)]
    folder = folder / xxhash.xxh3_64_hexdigest(json.dumps(about, sort_keys=True).encode())
    done = folder / "figures.json"
    if gather_object([done.exists()])[0]:
        return json.loads(done.read_text())
    train = replace(task.train, batch_size=settings.batch_size, seed=seed, output_dir=str(folder))
    accelerator = build_accelerator(train)
    set_seed(seed)
    learned, choosing = _split(bank, settings, seed)
    size, classes = settings.size or size_of(encoder), int(max(bank.numbers.max(), queries.numbers.max())) + 1
    network = network_of(encoder, settings, classes, size)
    trial = Trial(task, seed, encoder, network, accelerator, size, classes)
    _train(trial, learned, folder)
    heads, best = range(len(settings.lr)), 0
    if choosing is not None:
        told = [_accuracy(trial, choosing, head)["top1"] for head in heads]
        best = max(heads, key=lambda head: told[head])
    figures = _accuracy(trial, queries, best) | {"lr": settings.lr[best]}
    figures["failed"] = trial.failed + figures["failed"]
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(done, json.dumps(figures))
    accelerator.wait_for_everyone()
    return figures


def _split(bank: Source, settings: Supervised, seed: int) -> tuple[Source, Source | None]:
    """Training examples, and held-out examples to choose the learning rate if there are several."""
    place, size = place_in_class(bank.numbers, seed)
    known = bank.numbers >= 0
    if settings.share is not None:
        known &= place < (settings.share * size).round().clip(1)
    if len(settings.lr) == 1:
        return bank.select(known.nonzero()[0].tolist()), None
    held = place < (size // _HELD_OUT).clip(1)
    return bank.select((known & ~held).nonzero()[0].tolist()), bank.select((known & held).nonzero()[0].tolist())


def _train(trial: Trial, source: Source, folder: Path) -> None:
    """Train, resuming from the newest checkpoint if there is one."""
    settings, accelerator = trial.task.settings, trial.accelerator
    if len(source) < settings.batch_size:
        raise RecipeError(
            f"The batch size {settings.batch_size} exceeds the {len(source)} training examples; lower "
            "--train-batch-size."
        )
    steps_per_epoch = steps_in_epoch(len(source), settings.batch_size)
    num_steps = max(1, round(settings.epochs * steps_per_epoch))
    optimizer = _optimizer(trial.network.groups(settings), settings)
    stage2 = ImageTransform(*normalization_of(trial.encoder))
    labels = torch.from_numpy(source.numbers)

    def loss(network: Any, batch: dict[str, Any]) -> torch.Tensor:
        pixels = stage2(batch, accelerator.device)["pixel_values"][:, 0]
        asked = labels[batch["index"]].to(accelerator.device)
        return torch.stack([F.cross_entropy(one, asked) for one in network(pixels).float()]).sum()

    plan = Plan(
        num_steps,
        steps_per_epoch,
        lambda start: _loader_of(trial, source, start, num_steps),
        loss,
        lambda step: rate(settings, step, num_steps, steps_per_epoch),
        {"supervised": asdict(settings)},
    )
    train = trial.task.train
    trained = train_steps(plan, trial.network, optimizer, folder=folder, train=train, accelerator=accelerator)
    trial.network, trial.failed = trained


def _loader_of(trial: Trial, source: Source, start: int, num_steps: int) -> TrainLoader:
    """Batches of one random crop per image, with the index of the image shown, also for substitutes."""
    views = LabeledViews([replace(_CROP, size=trial.size)], channels=len(normalization_of(trial.encoder)[0]))
    return TrainLoader(
        source,
        views,
        batch_size=trial.task.settings.batch_size,
        num_steps=num_steps,
        seed=trial.seed,
        start_step=start,
        rank=trial.accelerator.process_index,
        world_size=trial.accelerator.num_processes,
        num_workers=trial.task.data.num_workers,
    )


def _optimizer(groups: list[dict[str, Any]], settings: Supervised) -> torch.optim.Optimizer:
    groups = [{**group, "lr": group["peak_lr"], "weight_decay": settings.weight_decay} for group in groups]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups)
    if settings.optimizer == "larc":
        return Larc([{**group, "excluded": False} for group in groups], lr=settings.lr[0], momentum=settings.momentum)
    return torch.optim.SGD(groups, momentum=settings.momentum, nesterov=settings.nesterov)


def rate(settings: Supervised, step: int, num_steps: int, steps_per_epoch: int) -> float:
    """Learning rate at a step (from 0) as a fraction of the peak."""
    warmup = round(settings.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return (step + 1) / warmup
    epoch = step / steps_per_epoch
    if settings.milestones:
        return settings.gamma ** sum(epoch >= one for one in settings.milestones)
    step = step // steps_per_epoch * steps_per_epoch if settings.by_epoch else step
    return (1 + math.cos(math.pi * (step - warmup) / max(num_steps - warmup, 1))) / 2


def _accuracy(trial: Trial, source: Source, head: int) -> dict[str, Any]:
    """Accuracies on a source; every example counts once for any number of processes."""
    accelerator, transform = trial.accelerator, trial.encoder.transform
    if isinstance(transform, ImageInference):
        transform = replace(transform, size=trial.size)
    network = trial.network.eval()
    scores, failed = Scores(torch.arange(trial.classes)), []
    for batch in embedded(
        lambda inputs: {"": network(inputs["pixel_values"])[head]},
        source,
        transform,
        device=accelerator.device,
        batch_size=trial.task.monitor.batch_size,
        num_workers=trial.task.data.num_workers,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    ):
        failed += batch.failed
        for told, labels in gather_object([(batch.vectors[""][:, 0].cpu(), batch.labels.cpu())]):
            known = labels >= 0
            if known.any():
                scores.add(told[known].float(), labels[known])
    network.train()
    return {**scores.read(), "failed": sorted(gather_object(failed))}
