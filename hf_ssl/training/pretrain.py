# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""The training loop: build, resume, step, log, monitor, checkpoint, export.

Killed anywhere and started again, a run ends where it would have ended: data, views and schedules are functions of the
step, and a checkpoint holds everything else. The loop knows no method by name (see the hooks of `hf_ssl.models`).
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import gather_object, set_seed
from torch import nn
from tqdm.auto import tqdm

from ..data.bank import measured_line, measured_on
from ..data.fingerprint import fingerprint
from ..data.loader import TrainLoader
from ..data.sources import Source, check_source
from ..data.streams import ImageStream, merge_states
from ..data.workers import WorkerError
from ..errors import RunError
from ..hub.card import Results, hardware, versions
from ..hub.encoders import start_from_encoder
from ..hub.export import export
from ..models import rebuildable_by_timm
from ..optim import build_optimizer, set_learning_rates
from ..recipe import Recipe, RecipeError
from .accelerator import build_accelerator, fit_model, on_main, prepare
from .checkpoint import Checkpoints, Found, RunState
from .finite import all_finite, features_finite
from .fsdp import build_once, full_state_dict
from .lock import run_lock
from .metrics import Journal, Meter, Totals, peak_memory
from .monitor import Monitor, evaluating
from .publish import Publisher
from .setup import (
    build,
    continue_recipe,
    count_instances,
    count_steps,
    described,
    monitor_sources,
    note_other_examples,
    refuse_other_data,
    training_source,
)
from .signals import Interrupted, StopSignals
from .warm_start import warm_start


logger = get_logger(__name__)


class NonFiniteLoss(RunError):
    """The loss or the weights became NaN or infinite; the last good checkpoint is kept."""


@dataclass(frozen=True)
class PretrainResult:
    """Where a finished run left its model, and its measurements: `baseline` (raw pixels, untrained) and `final`.

    `needs_code`: the encoder is one that timm cannot build by name, so it loads with `trust_remote_code=True`.
    `measured`: on which examples, see `hf_ssl.data.bank.measured_on`.
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
        NonFiniteLoss: the loss or the weights became NaN or infinite.
        WorkerError: a loader's worker was killed.
        Interrupted: SIGTERM or SIGINT came.
    """
    if dataset is not None:  # what the recipe names was not trained on, and no card may say so
        recipe = replace(recipe, data=replace(recipe.data, path=None))
    encoder = start_from_encoder(recipe)
    views, config, modality = described(recipe)
    if dataset is None:
        check_source(recipe.data, kind=modality.medium)
    accelerator = build_accelerator(recipe.train)
    recipe.per_process_batch(accelerator.num_processes)
    modality.check(views, config)
    folder = Path(recipe.train.output_dir)
    with run_lock(folder, accelerator):
        every = recipe.train.keep_every
        checkpoints = Checkpoints(folder / "checkpoints", recipe.train.keep, accelerator)
        if recipe.train.resume == "never" and checkpoints.complete():
            raise RecipeError(f"{folder} already holds a run; set another train.output_dir or train.resume=auto.")
        found = checkpoints.newest()
        if found is not None:
            recipe = continue_recipe(recipe, found)
        with accelerator.main_process_first():  # one process fills the cache of `datasets`
            source = training_source(recipe, dataset, modality)
            bank, queries = monitor_sources(recipe, dataset, bank, queries, modality)
        run = _Run(recipe, accelerator, checkpoints, found, source, encoder, (bank, queries), dataset is not None)
        if every is not None:
            checkpoints.keep_every = max(1, round(every * run.steps_per_epoch))
        return run.finished() or run.train()


class _Run:
    """What one call of `pretrain` works on.

    Args:
        found: the checkpoint to continue, if there is one.
        encoder: tensors to start from, in timm's names, or None.
        labelled: bank and queries of the monitor.
        made_in_python: the source is of a dataset that was given from Python.
    """

    def __init__(
        self,
        recipe: Recipe,
        accelerator: Accelerator,
        checkpoints: Checkpoints,
        found: Found | None,
        source: Source | ImageStream,
        encoder: dict[str, torch.Tensor] | None,
        labelled: tuple[Source | None, Source | None],
        made_in_python: bool,
    ):
        self.recipe, self.accelerator, self.checkpoints, self.found = recipe, accelerator, checkpoints, found
        self.source, self.encoder, self.labelled = source, encoder, labelled
        self.measured = measured_on(*labelled, recipe.monitor.k)
        self.views, self.config, self.modality = described(recipe)
        self.folder = checkpoints.folder.parent
        self.streamed = isinstance(source, ImageStream)
        state = found.state if found else None
        self.num_examples = source.num_examples if self.streamed else len(source)
        self.data = gather_object([fingerprint(source, made_in_python) if accelerator.is_main_process else None])[0]
        if self.modality.numbered:
            stream = state.stream if state else None
            instances = int(source.rows(stream)[-1]) if self.streamed else self.num_examples
            before = state.num_instances if state and state.num_instances is not None else instances
            count_instances(self.config, instances, before, self.folder)
        if state:
            note_other_examples(self.measured, state)
            refuse_other_data(recipe, state, self.data, None if self.streamed else self.num_examples)
        counted = state.stream["num_examples"] if state and state.stream else self.num_examples
        # The epoch stays as long as it was when a shard has become unreadable since.
        self.num_steps, self.steps_per_epoch = count_steps(recipe.train, counted)

    def finished(self) -> PretrainResult | None:
        """The result of a run that has ended and whose model is there; nothing is written again."""
        model_dir = self.folder / "model"
        if self.found is None or self.found.state.step != self.num_steps:
            return None
        measured = None
        if self.accelerator.is_main_process:
            try:
                told = json.loads((model_dir / "results.json").read_text(encoding="utf-8"))
                known = told["steps"] == self.num_steps
                measured = (told["baseline"], told["final"], told.get("measured", {})) if known else None
            except (OSError, ValueError, KeyError, TypeError):  # no model, or not this run's: it is exported again
                measured = None
        measured = gather_object([measured])[0]
        if measured is None:
            return None
        logger.info(f"{self.folder} is already finished, at step {self.num_steps}; {model_dir} stays as it is.")
        Publisher(self.recipe.train, self.accelerator).finish(self.num_steps)
        return self._result(*measured)

    def _result(self, baseline: dict, final: dict, measured: dict) -> PretrainResult:
        needs_code, is_main = not rebuildable_by_timm(self.config), self.accelerator.is_main_process
        return PretrainResult(self.folder / "model", baseline, final, needs_code, is_main, measured)

    def train(self) -> PretrainResult:
        """From the start, or from the checkpoint, to the exported model."""
        recipe, accelerator, checkpoints, config = self.recipe, self.accelerator, self.checkpoints, self.config
        train, num_steps, steps_per_epoch = recipe.train, self.num_steps, self.steps_per_epoch
        publisher = Publisher(train, accelerator)

        # Build: the same weights on every process, then random states of their own.
        set_seed(train.seed)
        with build_once(accelerator):
            model = build(recipe, config).train()
            forgotten = warm_start(model, train.init_from) if train.init_from and self.found is None else []
            if self.encoder is not None:
                model.load_encoder(self.encoder, recipe.model["init_from"])
        model = fit_model(model, train, accelerator)
        make_optimizer = partial(build_optimizer, optim=recipe.optim, batch_size=train.batch_size)
        wrapped, optimizer = prepare(model, make_optimizer, accelerator)
        model = accelerator.unwrap_model(wrapped)
        torch.manual_seed(train.seed + 1 + accelerator.process_index)

        # Resume.
        state, own = None, {}
        if self.found is not None:
            self.found, own = checkpoints.load(self.found, model, optimizer)
            state = self.found.state
        start = state.step if state else 0
        if start > num_steps:
            raise RecipeError(f"{self.folder} is at step {start}, and the recipe ends at step {num_steps}.")
        totals = Totals(accelerator, **(state.totals if state else {}))

        workers = min(recipe.data.num_workers, os.cpu_count() or 1)
        stage1, to_inputs = self.modality.stage1(self.views, config, recipe), self.modality.stage2(config)
        monitor = Monitor(recipe.monitor, self.modality, config, accelerator, *self.labelled, workers, self.source)
        monitor.restore(own.get("monitor", {}))
        make_loader = partial(
            TrainLoader,
            self.source,
            stage1,
            batch_size=train.batch_size,
            seed=train.seed,
            accumulation=train.accumulation,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            num_workers=workers,
            max_failed_share=recipe.data.max_failed_share,
            shuffle_block=recipe.data.shuffle_block,
        )
        if self.found is None:
            with torch.no_grad(), evaluating(model):
                model.prepare(set(forgotten), self._every_example(make_loader, to_inputs))
        loader = make_loader(start_step=start, num_steps=num_steps, state=state.stream if state else None)
        journal = Journal(recipe, accelerator, steps_per_epoch, state and state.step, state.results if state else {})
        on_main(accelerator, journal.begin)
        bad_step = torch.full((), -1, device=accelerator.device, dtype=torch.long)
        consumed, checked, saved_at = loader.state(), -1, time.monotonic()
        inputs = None

        def results(step: int) -> Results:
            counted = None if self.streamed else self.num_examples  # a recipe's own word is no count
            where = hardware(accelerator.num_processes, str(accelerator.device))
            figures = (journal.at(0), journal.at(step))
            return Results(*figures, counted, step, totals.seconds, where, versions(), measured=self.measured)

        def check(step: int, weights: bool = True) -> None:
            """Stop, on all processes, where one has a loss or weights that are no numbers."""
            nonlocal checked
            if checked == step:
                return
            bad = bad_step.item()
            if weights:
                fine = all_finite(model, optimizer)
                fine = (inputs is None or features_finite(model, inputs)) and fine
                bad = bad if fine or bad >= 0 else step
            bad = max(gather_object([bad]))
            if bad >= 0:
                rate = max(group["lr"] for group in optimizer.param_groups)
                raise NonFiniteLoss(_diverged(bad, rate, checkpoints, weights=bad_step.item() < 0))
            checked = step if weights else checked

        def save(step: int) -> bool:
            nonlocal saved_at
            with meter.paused():
                check(step)
                totals.synchronize()
                kept = RunState(step, recipe.to_dict(), totals.to_dict(), data=self.data)
                remembered = {}
                if accelerator.is_main_process:  # who has the journal and the monitor's window, and writes the state
                    kept.results = asdict(results(step))
                    remembered = {"monitor": monitor.state(), "meter": meter.state()}
                if self.modality.numbered:
                    kept.num_instances = config.num_instances
                if self.streamed:
                    kept.stream = merge_states(gather_object([consumed]))
                saved_at = time.monotonic()
                return checkpoints.save(step, model, optimizer, kept, remembered)

        def push(step: int) -> None:
            measured, tensors = results(step), full_state_dict(model)
            publisher.start(lambda folder: export(model, recipe, folder, tensors=tensors, results=measured), step)

        def fetch(step: int, micro: int) -> dict:
            """The next micro-batch, unless the run has to stop here: all processes stop together."""
            try:
                with meter.waiting():
                    batch, failure = next(batches), None
            except (WorkerError, RecipeError) as error:
                batch, failure = None, error
            late = train.checkpoint_minutes is not None and accelerator.is_main_process
            late = late and time.monotonic() - saved_at > 60 * train.checkpoint_minutes
            signum, failed, due = stop.agreed(failure is not None, late)
            if micro == 0 and (failed or signum or due):  # within a step there is nothing to continue from
                saved = save(step)
                if signum and not failed:
                    journal.close()
                    raise Interrupted(signum, step, saved)
            if failed:
                journal.close()
                raise failure or RunError("This process stops because another one could not go on.")
            return batch

        if self.measured:
            logger.info(measured_line(self.measured))
        for note in self.measured.get("notes", ()):
            logger.warning(note)
        if state:
            logger.info(f"Continuing {self.folder} at step {start} of {num_steps}.")
        else:
            check(0)
            if baseline := monitor.baseline(model):
                journal.record(0, baseline)

        every_checkpoint = max(1, round(train.checkpoint_every * steps_per_epoch))
        every_monitor = round(recipe.monitor.every * steps_per_epoch) or num_steps
        meter = Meter(accelerator, start, own.get("meter"))
        progress = tqdm(
            total=num_steps,
            initial=start,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.2 if sys.stderr.isatty() else 20.0,  # a log file gets a line now and then
            disable=not accelerator.is_local_main_process,
        )
        with StopSignals() as stop, progress, closing(iter(loader)) as batches:
            for step in range(start, num_steps):
                now = (step, num_steps, steps_per_epoch)
                done, last = step + 1, step + 1 == num_steps
                logged = last or done % train.log_every == 0
                for micro in range(train.accumulation):
                    batch = fetch(step, micro)
                    if micro == 0:
                        set_learning_rates(optimizer, recipe.optim, *now)
                        model.before_step(*now)
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
                limit = recipe.optim.clip_grad_norm
                if limit is not None:
                    norm = accelerator.clip_grad_norm_(model.parameters(), limit)
                elif logged:
                    norm = _grad_norm(model, optimizer, accelerator)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                model.after_step(*now)
                monitor.observe(output)
                consumed = loader.state()

                progress.update()
                if logged:
                    check(done, weights=False)
                    totals.synchronize()
                    values = meter.read(done, train.batch_size, self.modality.name)
                    totals.seconds += values.pop("seconds")
                    values["lr"] = max(group["lr"] for group in optimizer.param_groups)
                    values |= {"grad_norm": _whole(norm).item(), **peak_memory(accelerator.device)}
                    journal.record(done, {**values, "skipped": totals.skipped, **model.metrics()})
                    speed = f"{values[f'{self.modality.name}_per_second']:.0f} {self.modality.name}/s"
                    shown = f"loss {values['loss']:.4g}, lr {values['lr']:.3g}, {speed}"
                    progress.set_postfix_str(shown, refresh=False)
                if last or done % every_monitor == 0:
                    with meter.paused():
                        check(done)
                        values = monitor.measure(model)
                    journal.record(done, values)
                    headline = monitor.headline(values)
                    if headline and not progress.disable:
                        progress.write(f"epoch {done / steps_per_epoch:.4g}: {headline}", file=sys.stderr)
                milestone = checkpoints.keep_every and done % checkpoints.keep_every == 0
                if last or milestone or done % every_checkpoint == 0:
                    save(done)
                    with meter.paused():
                        if milestone and not last:
                            self._keep_model(model, done, results(done))
                        if publisher.due() and not last:
                            push(done)

        totals.summarize()
        measured, tensors = results(num_steps), full_state_dict(model)
        on_main(accelerator, lambda: export(model, recipe, self.folder / "model", tensors=tensors, results=measured))
        accelerator.wait_for_everyone()
        publisher.finish(num_steps)
        journal.close()
        return self._result(measured.baseline, measured.final, measured.measured)

    def _every_example(self, make_loader: partial, to_inputs) -> Iterator[dict[str, torch.Tensor]]:
        """The model's inputs of one pass over the data; nothing is loaded before the first is asked for."""
        loaders = [make_loader(start_step=0, num_steps=self.steps_per_epoch)]
        rest = 0 if self.streamed else self.num_examples % self.recipe.train.batch_size
        if rest:  # one by one, and all of them on every process
            alone = {"batch_size": 1, "accumulation": 1, "rank": 0, "world_size": 1}
            steps = {"start_step": self.num_examples - rest, "num_steps": self.num_examples}
            loaders.append(make_loader(**steps, **alone))
        for batch in chain.from_iterable(loaders):
            yield to_inputs(batch, self.accelerator.device)

    def _keep_model(self, model: nn.Module, step: int, measured: Results) -> None:
        """Export the model of a milestone; a disk that refuses it does not end the run."""
        folder, tensors = self.folder / "milestones" / f"step_{step:08d}", full_state_dict(model)
        if self.accelerator.is_main_process:
            try:
                export(model, self.recipe, folder, tensors=tensors, results=measured)
            except RecipeError as error:
                logger.error(f"{error} Training goes on.")
        self.accelerator.wait_for_everyone()


def _diverged(step: int, rate: float, checkpoints: Checkpoints, weights: bool) -> str:
    kept = checkpoints.complete()
    what = "weights, or their features, were NaN or infinite before" if weights else "loss became NaN or infinite at"
    good = f"{kept[-1]}, from which train.init_from goes on" if kept else "none: none had been written yet"
    return (
        f"The {what} step {step}; lower optim.lr (it was {rate:.3g} there), lengthen the warm-up or set "
        f"optim.clip_grad_norm, in another train.output_dir. The last good checkpoint is {good}."
    )


def _grad_norm(model: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator) -> torch.Tensor:
    accelerator.unscale_gradients(optimizer)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return nn.utils.get_total_norm(gradients)


def _whole(norm: torch.Tensor) -> torch.Tensor:
    """Of sharded gradients it is a sum over processes that is still to be made."""
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm
