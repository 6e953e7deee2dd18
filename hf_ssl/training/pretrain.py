# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""The training loop: build, resume, step, log, monitor, checkpoint, export.

Killed anywhere and started again, a run ends where it would have ended: data, views and schedules are functions of the
step, and a checkpoint holds everything else. The loop knows no method by name (see the hooks of `hf_ssl.models`).
"""

import os
import sys
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import gather_object, set_seed
from datasets import Dataset, IterableDataset
from tqdm.auto import tqdm

from ..data.bank import (
    labelled_sources,
    limited,
    measured_line,
    measured_on,
    paired_by_hand,
    part_held_out,
    with_usable_labels,
)
from ..data.clips import ClipTransform, ClipViews
from ..data.loader import TrainLoader, steps_in_epoch
from ..data.photometric import Photometric
from ..data.sources import Source, available_splits, check_source, load_source, source_of
from ..data.streams import ImageStream, merge_states, open_stream
from ..data.views import resolve_views
from ..evaluation.features import EvalTransform
from ..hub.card import Results, hardware, versions
from ..hub.encoders import start_from_encoder
from ..hub.export import export
from ..models import METHODS, SSLConfig, rebuildable_by_timm
from ..optim import build_optimizer, set_learning_rates
from ..recipe import Recipe, RecipeError, TrainConfig, model_config
from .accelerator import build_accelerator, fit_model, prepare
from .checkpoint import Checkpoints
from .fsdp import build_once, full_state_dict
from .metrics import Journal, Meter, Totals
from .monitor import ClipMonitor, Monitor, evaluating
from .publish import Publisher
from .signals import Interrupted, StopSignals
from .warm_start import warm_start


logger = get_logger(__name__)


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite; the last good checkpoint is kept."""


@dataclass(frozen=True)
class PretrainResult:
    """Where a finished run left its model, and its measurements: `baseline` (raw pixels, untrained) and `final`.

    `needs_code`: the encoder is one that timm cannot build by name, so it loads with `trust_remote_code=True`.
    `measured`: what the figures were measured on, see `hf_ssl.data.bank.measured_on`.
    """

    model_dir: Path
    baseline: dict[str, float]
    final: dict[str, float]
    needs_code: bool
    is_main_process: bool
    measured: dict[str, Any]


def pretrain(recipe: Recipe, dataset=None, bank=None, queries=None) -> PretrainResult:
    """Run a recipe from its newest checkpoint, or from the start, to the exported model.

    Args:
        recipe: see `hf_ssl.recipe`.
        dataset: a `datasets.Dataset` or `IterableDataset` to train on instead of `recipe.data.path`.
        bank, queries: labelled datasets for the kNN monitor instead of `recipe.monitor.path`.

    Raises:
        RecipeError: something in the recipe cannot work here.
        NonFiniteLoss: the loss became NaN or infinite.
        Interrupted: SIGTERM or SIGINT came.
    """
    if dataset is not None:  # what the recipe names was not trained on, and no card may say so
        recipe = replace(recipe, data=replace(recipe.data, path=None))
    train = recipe.train
    views = resolve_views(recipe.views, recipe.method)
    encoder = start_from_encoder(recipe)
    config = model_config(recipe, image_size=views[0].size)
    kind = "image" if isinstance(config, SSLConfig) else "video"
    if dataset is None:
        check_source(recipe.data, kind=kind)
    accelerator = build_accelerator(train)
    recipe.per_process_batch(accelerator.num_processes)
    publisher = Publisher(train, accelerator)
    output_dir = Path(train.output_dir)
    with accelerator.main_process_first():  # one process fills the cache of `datasets`
        source = _training_source(recipe, dataset, kind)
        bank, queries = _monitor_sources(recipe, dataset, bank, queries, kind)
        measured = measured_on(bank, queries, recipe.monitor.k)
    streamed = isinstance(source, ImageStream)
    num_examples = source.num_examples if streamed else len(source)
    num_steps, steps_per_epoch = count_steps(train, num_examples)

    checkpoints = Checkpoints(output_dir / "checkpoints", train.keep_checkpoints, accelerator)
    if train.resume == "never" and checkpoints.complete():
        raise RecipeError(f"{output_dir} already holds a run; set another train.output_dir or train.resume=auto.")
    if kind == "video":
        kept = checkpoints.state()
        instances = int(source.rows(kept.get("stream"))[-1]) if streamed else num_examples
        _count_instances(config, instances, kept.get("num_instances", instances), output_dir)

    # Build: the same weights on every process, then random states of their own.
    set_seed(train.seed)
    with build_once(accelerator):
        model = _build(recipe, config).train()
        forgotten = warm_start(model, train.init_from) if train.init_from and not checkpoints.complete() else []
        if encoder is not None:
            model.load_encoder(encoder, recipe.model["init_from"])
    model = fit_model(model, train, accelerator)
    make_optimizer = partial(build_optimizer, optim=recipe.optim, batch_size=train.batch_size)
    wrapped, optimizer = prepare(model, make_optimizer, accelerator)
    model = accelerator.unwrap_model(wrapped)
    torch.manual_seed(train.seed + 1 + accelerator.process_index)

    # Resume.
    state = checkpoints.load_latest(model, optimizer, recipe.to_dict())
    start = state["step"] if state else 0
    if state and "stream" in state:  # the epoch stays as long as it was when a shard has become unreadable since
        num_steps, steps_per_epoch = count_steps(train, state["stream"]["num_examples"])
    totals = Totals(accelerator, **state["totals"]) if state else Totals(accelerator)

    workers = min(recipe.data.num_workers, os.cpu_count() or 1)
    if kind == "image":
        to_inputs = Photometric(config.image_mean, config.image_std)
        monitor = Monitor(recipe.monitor, EvalTransform.of(config), accelerator, bank, queries, workers)
    else:
        views, to_inputs = ClipViews(views[0], config, recipe.clips), ClipTransform(config)
        monitor = ClipMonitor(recipe.monitor, config, accelerator, bank, queries, workers, source)
    make_loader = partial(
        TrainLoader,
        source,
        views,
        batch_size=train.batch_size,
        seed=train.seed,
        accumulation=train.accumulation,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        num_workers=workers,
        reference=recipe.views.photometric == "reference",
        channels=config.num_channels,
        max_failed_share=recipe.data.max_failed_share,
        shuffle_block=recipe.data.shuffle_block,
    )
    if model.refilled & set(forgotten):
        with torch.no_grad(), evaluating(model):
            loaders = [make_loader(start_step=0, num_steps=steps_per_epoch)]
            rest = 0 if streamed else num_examples % train.batch_size
            if rest:  # one by one, and all of them on every process
                alone = {"batch_size": 1, "accumulation": 1, "rank": 0, "world_size": 1}
                loaders.append(make_loader(start_step=num_examples - rest, num_steps=num_examples, **alone))
            for batch in chain.from_iterable(loaders):
                model.refill(**to_inputs(batch, accelerator.device))
    loader = make_loader(start_step=start, num_steps=num_steps, state=state.get("stream") if state else None)
    batches = iter(loader)
    journal = Journal(recipe, accelerator, start, steps_per_epoch)
    bad_step = torch.full((), -1, device=accelerator.device, dtype=torch.long)

    def results(step: int) -> Results:
        counted = None if streamed else num_examples  # a recipe's own word is no count
        where = hardware(accelerator.num_processes, str(accelerator.device))
        figures = (journal.at(0), journal.at(step))
        return Results(*figures, counted, step, totals.seconds, where, versions(), measured=measured)

    def save(step: int) -> bool:
        totals.synchronize()
        _stop_if_not_finite(bad_step, checkpoints)
        kept = {"recipe": recipe.to_dict(), "totals": totals.to_dict()}
        if accelerator.is_main_process:  # who reads the journal for them, and writes the state
            kept["results"] = asdict(results(step))
        if kind == "video":
            kept["num_instances"] = config.num_instances
        if streamed:
            kept["stream"] = merge_states(gather_object([loader.state()]))
        return checkpoints.save(step, model, optimizer, kept)

    if measured:
        logger.info(measured_line(measured))
    for note in measured.get("notes", ()):
        logger.warning(note)
    if start:
        logger.info(f"Continuing {output_dir} at step {start} of {num_steps}.")
    elif baseline := monitor.baseline(model):
        journal.record(0, baseline)

    every_checkpoint = max(1, round(train.checkpoint_every * steps_per_epoch))
    every_monitor = round(recipe.monitor.every * steps_per_epoch) or num_steps
    meter = Meter(accelerator, start)
    progress = tqdm(
        total=num_steps,
        initial=start,
        unit="step",
        dynamic_ncols=True,
        mininterval=0.2 if sys.stderr.isatty() else 20.0,  # a log file gets a line now and then
        disable=not accelerator.is_local_main_process,
    )

    def push(step: int) -> None:
        found, tensors = results(step), full_state_dict(model)
        publisher.start(lambda folder: export(model, recipe, folder, tensors=tensors, results=found), step)

    with StopSignals() as stop, progress:
        for step in range(start, num_steps):
            now = (step, num_steps, steps_per_epoch)
            set_learning_rates(optimizer, recipe.optim, *now)
            model.before_step(*now)
            for micro in range(train.accumulation):
                with meter.waiting():
                    batch = next(batches)
                totals.add_skipped(batch["skipped"])
                inputs = to_inputs(batch, accelerator.device)
                # Sharded gradients add up where they are; unsharded ones would need the memory that FSDP saves.
                synchronize = micro == train.accumulation - 1 or accelerator.is_fsdp2
                with nullcontext() if synchronize else accelerator.no_sync(wrapped):
                    output = wrapped(**inputs)
                    accelerator.backward(output.loss / train.accumulation)
                loss = output.loss.detach()
                meter.add_loss(loss / train.accumulation)
                bad_step = torch.where((bad_step < 0) & ~loss.isfinite(), step, bad_step)
            model.before_optimizer_step(*now)
            if recipe.optim.clip_grad_norm is not None:
                accelerator.clip_grad_norm_(model.parameters(), recipe.optim.clip_grad_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            model.after_step(*now)
            monitor.observe(output)

            done = step + 1
            progress.update()
            if done % train.log_every == 0 or done == num_steps:
                _stop_if_not_finite(bad_step, checkpoints)
                totals.synchronize()
                values = meter.read(done, train.batch_size, monitor.examples)
                totals.seconds += values.pop("seconds")
                values["lr"] = max(group["lr"] for group in optimizer.param_groups)
                journal.record(done, {**values, "skipped": totals.skipped, **model.metrics()})
                speed = f"{values[f'{monitor.examples}_per_second']:.0f} {monitor.examples}/s"
                shown = f"loss {values['loss']:.4g}, lr {values['lr']:.3g}, {speed}"
                progress.set_postfix_str(shown, refresh=False)
            if done == num_steps or done % every_monitor == 0:
                with meter.paused():
                    values = monitor.measure(model)
                journal.record(done, values)
                headline = monitor.headline(values)
                if headline and not progress.disable:
                    progress.write(f"epoch {done / steps_per_epoch:.4g}: {headline}", file=sys.stderr)
            if done == num_steps or done % every_checkpoint == 0:
                with meter.paused():
                    save(done)
                    if publisher.due() and done < num_steps:
                        push(done)
            signum = stop.agreed()
            if signum is not None:
                saved = save(done)
                journal.close()
                raise Interrupted(signum, done, saved)

    found, tensors = results(num_steps), full_state_dict(model)
    if accelerator.is_main_process:
        export(model, recipe, output_dir / "model", tensors=tensors, results=found)
    accelerator.wait_for_everyone()
    publisher.finish(num_steps)
    journal.close()
    return PretrainResult(
        output_dir / "model",
        found.baseline,
        found.final,
        not rebuildable_by_timm(config),
        accelerator.is_main_process,
        measured,
    )


def _count_instances(config, instances: int, before: int, output_dir: Path) -> None:
    """Give the memories a row for each of the data's clips.

    Raises:
        RecipeError: the recipe, or the checkpoint, has another number.
    """
    if before != instances:
        raise RecipeError(
            f"The data have {instances:,} clips, but the run in {output_dir} was begun with {before:,}, a row of its "
            "memories for each; restore them, or start another train.output_dir from it with train.init_from."
        )
    if config.num_instances not in (0, instances):
        raise RecipeError(
            f"model.num_instances={config.num_instances}, but the data have {instances:,} clips; leave it out, it is "
            "counted."
        )
    config.num_instances = instances


def _build(recipe: Recipe, config):
    try:
        return METHODS[recipe.method][1](config)
    except ValueError as error:  # sizes that do not fit each other, or the data
        raise RecipeError(f"model: {error}") from None


def count_steps(train: TrainConfig, num_examples: int | None) -> tuple[int, int]:
    """Steps of a run, and of an epoch; a stream of unknown length is one epoch.

    Raises:
        RecipeError: fewer examples than a batch, or epochs of an unknown length.
    """
    if num_examples is not None:
        steps_per_epoch = steps_in_epoch(num_examples, train.batch_size)
        return train.steps or max(1, round(train.epochs * steps_per_epoch)), steps_per_epoch
    if train.steps is None:
        raise RecipeError("The length of the stream is not known; set data.num_examples, or train.steps for epochs.")
    return train.steps, train.steps


def _training_source(recipe: Recipe, dataset, kind: str) -> Source | ImageStream:
    data = recipe.data
    if data.streaming or isinstance(dataset, IterableDataset):
        return open_stream(data, dataset, kind)
    return load_source(data, kind=kind) if dataset is None else source_of(dataset, data, kind)


def _monitor_sources(recipe: Recipe, dataset, bank, queries, kind: str) -> tuple[Source | None, Source | None]:
    """Labelled bank and queries of the monitor, or None where nothing is labelled; videos need no labels."""
    data, monitor = recipe.data, recipe.monitor
    if (bank is None) != (queries is None):
        raise RecipeError("Give pretrain both a bank and queries, or neither.")
    if bank is not None:
        columns = replace(data, image_column=monitor.image_column, label_column=monitor.label_column)
        return paired_by_hand(source_of(bank, columns, kind), source_of(queries, columns, kind), monitor)
    if monitor.path is None and isinstance(dataset, Dataset):
        columns = replace(data, label_column=monitor.label_column or data.label_column)
        return part_held_out(source_of(dataset, columns, kind), monitor)
    if monitor.path is None and (dataset is not None or data.streaming):
        return None, None  # a stream is not indexed for the sake of its labels
    if kind == "image":
        return labelled_sources(data, monitor, kind)
    where = replace(data, path=monitor.path or data.path, max_examples=None)
    unseen = monitor.query_split in available_splits(where, kind)
    try:
        found = labelled_sources(data, monitor, kind)
    except RecipeError:
        if monitor.label_column is not None or not unseen:
            raise
        found = None, None
    if found[1] is not None or not unseen:
        return found
    return None, limited(with_usable_labels(load_source(where, monitor.query_split, kind)), monitor.max_queries)


def _stop_if_not_finite(bad_step: torch.Tensor, checkpoints: Checkpoints) -> None:
    step = bad_step.item()
    if step >= 0:
        kept = checkpoints.complete()
        raise NonFiniteLoss(
            f"The loss became NaN or infinite at step {step}; lower optim.lr or lengthen the warm-up. "
            f"The last good checkpoint is {kept[-1] if kept else 'none: none had been written yet'}."
        )
