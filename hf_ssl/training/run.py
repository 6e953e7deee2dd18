# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""A run: what the loop works on, and what it does once in a while."""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import timm.utils
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedConfig

from ..data.bank import measured_line
from ..data.loader import TrainLoader
from ..data.modality import Modality, Stage2
from ..data.streams import merge_states
from ..data.views import View
from ..data.workers import WorkerError
from ..errors import RunError, UserError
from ..hub.card import Results, hardware, versions
from ..hub.export import export
from ..hub.usage import loading_lines
from ..logs import get_logger
from ..methods import code_digest
from ..models import SSLPreTrainedModel, rebuildable_by_timm
from ..recipe import Recipe
from .accelerator import on_main
from .checkpoint import Checkpoints, Found, RunState
from .examples import Examples, count_steps
from .finite import all_finite, features_finite
from .fsdp import full_state_dict
from .metrics import MetricsLogger, RunTotals, Throughput, peak_memory
from .monitor import Monitor
from .publish import Publisher, write_report
from .signals import Interrupted, StopSignals


logger = get_logger(__name__)


class NonFiniteLoss(RunError):
    """The loss or the weights became NaN or infinite; the last good checkpoint is kept."""


@dataclass(frozen=True)
class PretrainResult:
    """Where a finished run left its model, and its measurements: `baseline` (raw pixels, untrained) and `final`.

    `needs_code`: the encoder is one that timm cannot build by name, so it loads with `trust_remote_code=True`.
    `measured`: on which examples, see `hf_ssl.data.bank.measured_on`.
    `usage`: lines of Python that load the encoder.
    `summary`: what it took, see `RunTotals.summary`; nothing where the run had ended before.
    """

    model_dir: Path
    baseline: dict[str, float]
    final: dict[str, float]
    needs_code: bool
    is_main_process: bool
    measured: dict[str, Any]
    usage: list[str] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)


@dataclass
class Run:
    """One call of `pretrain`. `hf_ssl.training.setup` fills it: first the data, then with `build` the rest.

    Attributes:
        found: the checkpoint that is continued, or None.
        encoder: tensors to start from, in timm's names, on the main process.
        wrapped, model: the model as it is called in training, and the method's own.
        start: the first step.
        consumed: where this process's part of a stream stands behind the last step.
        index: of the examples of the last micro-batch, see `TrainLoader`.
    """

    recipe: Recipe
    accelerator: Accelerator
    checkpoints: Checkpoints
    found: Found | None
    examples: Examples
    modality: Modality
    views: list[View]
    config: PreTrainedConfig
    encoder: dict[str, torch.Tensor] | None
    wrapped: nn.Module = field(init=False)
    model: SSLPreTrainedModel = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)
    start: int = field(init=False)
    loader: TrainLoader = field(init=False)
    stage2: Stage2 = field(init=False)
    consumed: dict[str, Any] | None = field(init=False)
    monitor: Monitor = field(init=False)
    metrics: MetricsLogger = field(init=False)
    throughput: Throughput = field(init=False)
    totals: RunTotals = field(init=False)
    publisher: Publisher = field(init=False)

    def __post_init__(self):
        self.folder = self.checkpoints.folder.parent
        self.num_steps, self.steps_per_epoch = count_steps(self.recipe.train, self.examples.counted)
        self.every_checkpoint = max(1, round(self.recipe.train.checkpoint_every * self.steps_per_epoch))
        self.every_monitor = round(self.recipe.monitor.every * self.steps_per_epoch) or self.num_steps
        self._bad_step = torch.full((), -1, device=self.accelerator.device, dtype=torch.long)
        self._checked, self._saved_at = -1, time.monotonic()
        self._inputs: dict[str, torch.Tensor] | None = None
        self.index: torch.Tensor | None = None
        self._frozen = False

    def due(self, done: int, every: int) -> bool:
        """Whether something that happens every so many steps, and at the end, happens after `done` steps."""
        return done == self.num_steps or done % every == 0

    def finished(self) -> PretrainResult | None:
        """The result of a run that has ended and whose model is there; nothing is written again."""
        if self.found is None or self.found.state.step != self.num_steps:
            return None
        told = None
        if self.accelerator.is_main_process:
            try:
                content = json.loads((self.folder / "model" / "results.json").read_text(encoding="utf-8"))
                if content["steps"] == self.num_steps:
                    told = (content["baseline"], content["final"], content.get("measured", {}))
            except (OSError, ValueError, KeyError, TypeError):
                pass  # no model, or not this run's: it is exported again
        told = gather_object([told])[0]
        if told is None:
            return None
        model_dir = self.folder / "model"
        logger.info(f"{self.folder} is already finished (step {self.num_steps}); {model_dir} is unchanged.")
        Publisher(self.recipe.train, self.accelerator).finish(self.num_steps)
        return self._result(*told)

    def begin(self) -> None:
        """Say what is measured, and measure it before the first step."""
        if self.examples.measured:
            logger.info(measured_line(self.examples.measured))
        for note in self.examples.measured.get("notes", ()):
            logger.warning(note)
        if self.found is not None:
            logger.info(f"Continuing {self.folder} at step {self.start} of {self.num_steps}.")
            return
        self.check(0)
        if baseline := self.monitor.baseline(self.model):
            self.metrics.record(0, baseline)

    def progress(self) -> tqdm:
        """A progress bar; a log file gets a line now and then."""
        return tqdm(
            total=self.num_steps,
            initial=self.start,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.2 if sys.stderr.isatty() else 20.0,
            disable=not self.accelerator.is_local_main_process,
        )

    def micro_batches(
        self, batches: Iterator[dict[str, Any]], stop: StopSignals, step: int
    ) -> Iterator[dict[str, Any]]:
        """The micro-batches of a step, unless the run has to stop here: all processes stop together.

        Raises:
            Interrupted: a signal came, and a checkpoint was written.
            WorkerError, UserError: the data cannot be read.
            RunError: those of another process cannot.
        """
        for micro in range(self.recipe.train.accumulation):
            yield self._next_batch(batches, stop, step, micro)

    def _next_batch(self, batches: Iterator[dict[str, Any]], stop: StopSignals, step: int, micro: int) -> dict:
        try:
            with self.throughput.waiting():
                batch, failure = next(batches), None
        except (WorkerError, UserError) as error:
            batch, failure = {}, error
        minutes = self.recipe.train.checkpoint_minutes
        late = minutes is not None and time.monotonic() - self._saved_at > 60 * minutes
        late = late and self.accelerator.is_main_process
        signum, failed, due = stop.agreed(failure is not None, late)
        if micro == 0 and (failed or signum or due):  # within a step there is nothing to continue from
            saved = self.save(step)
            if signum and not failed:
                self.metrics.close()
                raise Interrupted(signum, step, saved)
        if failed:
            self.metrics.close()
            raise failure or RunError("This process stops because another one failed.")
        return batch

    def freeze_backbone(self, step: int) -> None:
        """`train.freeze_backbone_epochs`: its parameters get no gradient, and no step of the optimizer, until then."""
        epochs = self.recipe.train.freeze_backbone_epochs
        frozen = step < round(epochs * self.steps_per_epoch)
        if frozen != self._frozen:
            change = timm.utils.freeze if frozen else timm.utils.unfreeze
            # The statistics of its BatchNorms follow the new images all the same.
            change(self.model.get_submodule("encoder.backbone"), include_bn_running_stats=False)
            self._frozen = frozen

    def inputs_of(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """The model's inputs; what could not be read is counted."""
        self.totals.add_skipped(batch["skipped"])
        self.index = batch["index"]
        self._inputs = self.stage2(batch, self.accelerator.device)
        return self._inputs

    def add_loss(self, loss: torch.Tensor, step: int) -> None:
        """Count a micro-batch's loss, and remember the first step at which it was no number; nothing is waited for."""
        self.throughput.add_loss(loss / self.recipe.train.accumulation)
        self._bad_step = torch.where((self._bad_step < 0) & ~loss.isfinite(), step, self._bad_step)

    def log(self, done: int, grad_norm: torch.Tensor, progress: tqdm) -> None:
        """Loss, speed and what the method tells, into `metrics.jsonl` and behind the progress bar."""
        self.check(done, weights=False)
        self.totals.synchronize()
        counted = self.modality.name
        values = self.throughput.read(done, self.recipe.train.batch_size, counted)
        self.totals.add_time(values.pop("seconds"), values["data_wait"])
        values["lr"] = max(group["lr"] for group in self.optimizer.param_groups)
        # Of sharded gradients the norm is a sum over processes that is still to be made.
        norm = grad_norm.full_tensor() if hasattr(grad_norm, "full_tensor") else grad_norm
        values |= {"grad_norm": norm.item(), **peak_memory(self.accelerator.device)}
        self.metrics.record(done, {**values, "skipped": self.totals.skipped, **self.model.metrics()})
        speed = f"{values[f'{counted}_per_second']:.0f} {counted}/s"
        progress.set_postfix_str(f"loss {values['loss']:.4g}, lr {values['lr']:.3g}, {speed}", refresh=False)

    def measure(self, done: int, progress: tqdm) -> None:
        """Accuracy and the diagnostics of collapse."""
        with self.throughput.paused():
            self.check(done)
            values = self.monitor.measure(self.model)
        self.metrics.record(done, values)
        if self.monitor.collapse:
            self.metrics.alert("The representation has collapsed", self.monitor.collapse)
        headline = self.monitor.headline(values)
        if headline and not progress.disable:
            progress.write(f"epoch {done / self.steps_per_epoch:.4g}: {headline}", file=sys.stderr)

    def check(self, step: int, weights: bool = True) -> None:
        """Stop, on all processes, where one has a loss or weights that are no numbers.

        Raises:
            NonFiniteLoss: one has.
        """
        if self._checked == step:
            return
        bad = lost = int(self._bad_step)
        if weights:
            fine = all_finite(self.model, self.optimizer)
            fine = (self._inputs is None or features_finite(self.model, self._inputs)) and fine
            bad = bad if fine or bad >= 0 else step
        bad = max(gather_object([bad]))
        if bad >= 0:
            rate = max(group["lr"] for group in self.optimizer.param_groups)
            raise NonFiniteLoss(_diverged(bad, rate, self.checkpoints, weights=lost < 0))
        self._checked = step if weights else self._checked

    def save(self, step: int) -> bool:
        """Write a checkpoint; False where the disk refused it."""
        with self.throughput.paused():
            self.check(step)
            self.totals.synchronize()
            state = RunState(step, self.recipe.to_dict(), self.totals.to_dict(), data=self.examples.fingerprint)
            own = {}
            if self.accelerator.is_main_process:  # it has the metrics and the monitor's window, and writes the state
                state.results = asdict(self.results(step))
                own = {"monitor": self.monitor.state(), "meter": self.throughput.state()}
            state.code = code_digest(self.recipe.method)
            state.began = self.found.state.began if self.found else state.format
            if self.modality.numbered:
                state.num_instances = self.config.num_instances
            if self.examples.streamed:
                state.stream = merge_states(gather_object([self.consumed]))
            self._saved_at = time.monotonic()
            return self.checkpoints.save(step, self.model, self.optimizer, state, own)

    def results(self, step: int) -> Results:
        """What has been measured, before training and at `step`."""
        counted = None if self.examples.streamed else self.examples.count  # a recipe's own word is no count
        where = hardware(self.accelerator.num_processes, str(self.accelerator.device))
        figures = (self.metrics.at(0), self.metrics.at(step))
        measured = self.examples.measured
        return Results(*figures, counted, step, self.totals.seconds, where, versions(), measured=measured)

    def share(self, done: int) -> None:
        """After a checkpoint: export the model of a milestone, and push where it is time. The run goes on."""
        last = done == self.num_steps
        with self.throughput.paused():
            if self.checkpoints.is_milestone(done) and not last:
                folder, tensors = self.folder / "milestones" / f"step_{done:08d}", full_state_dict(self.model)
                if self.accelerator.is_main_process:
                    try:
                        export(self.model, self.recipe, folder, tensors=tensors, results=self.results(done))
                    except UserError as error:
                        logger.error(f"{error} Training continues.")
                self.accelerator.wait_for_everyone()
            if self.publisher.due() and not last:
                measured, tensors = self.results(done), full_state_dict(self.model)
                self.publisher.start(partial(export, self.model, self.recipe, tensors=tensors, results=measured), done)

    def finish(self, report: bool = False) -> PretrainResult:
        """Export the model, write its report, and push it.

        Raises:
            UserError: the disk refused it; the checkpoints are kept.
        """
        self.totals.summarize()
        measured, tensors = self.results(self.num_steps), full_state_dict(self.model)
        write = partial(export, self.model, self.recipe, self.folder / "model", tensors=tensors, results=measured)
        on_main(self.accelerator, write)
        self.accelerator.wait_for_everyone()
        self.publisher.finish(self.num_steps)
        if report and self.accelerator.is_main_process:
            self.metrics.show(write_report(self.folder))
        self.metrics.close()
        images = (self.num_steps * self.recipe.train.batch_size, self.modality.name)
        summary = self.totals.summary(*images) | {"examples": measured.num_examples}
        return self._result(measured.baseline, measured.final, measured.measured, summary)

    def _result(
        self, baseline: dict, final: dict, measured: dict, summary: dict[str, Any] | None = None
    ) -> PretrainResult:
        needs_code, is_main = not rebuildable_by_timm(self.config), self.accelerator.is_main_process
        usage = loading_lines(self.modality, self.folder / "model", not needs_code)
        return PretrainResult(
            self.folder / "model", baseline, final, needs_code, is_main, measured, usage, summary or {}
        )


def _diverged(step: int, rate: float, checkpoints: Checkpoints, weights: bool) -> str:
    kept = checkpoints.complete()
    what = "weights, or their features, were NaN or infinite before" if weights else "loss became NaN or infinite at"
    good = f"{kept[-1]}, from which train.init_from goes on" if kept else "none: none had been written yet"
    return (
        f"The {what} step {step}; lower optim.lr (it was {rate:.3g} there), lengthen the warm-up or set "
        f"optim.clip_grad_norm, in another train.output_dir. The last good checkpoint is {good}."
    )
