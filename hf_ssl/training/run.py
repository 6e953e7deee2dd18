# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""State of a training run, and everything the loop does besides steps: log, measure, save, publish."""

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
from ..data.folders import ignored_below
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
    """Model folder of a finished run, and its measurements: `baseline` (raw pixels, untrained) and `final`.

    `needs_code`: timm cannot build the encoder by name, so loading it needs `trust_remote_code=True`.
    `measured`: description of the evaluation data, see `hf_ssl.data.bank.measured_on`.
    `usage`: lines of Python that load the encoder.
    `summary`: total cost, see `RunTotals.summary`; empty if the run was already finished.
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
    """One call of `pretrain`. `hf_ssl.training.setup` opens the data first, and its `build` sets the other fields.

    Attributes:
        found: the checkpoint to resume from, or None.
        encoder: pretrained tensors to start from, with timm's names, on the main process.
        wrapped, model: the model to call in training, and the unwrapped one.
        start: the first step.
        consumed: stream position of this process after the last step.
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
        """Whether an event with period `every` is due after `done` steps; the last step is always due."""
        return done == self.num_steps or done % every == 0

    def finished(self) -> PretrainResult | None:
        """The result of a run that is already finished and exported, else None; rewrites nothing."""
        if self.found is None or self.found.state.step != self.num_steps:
            return None
        told = None
        if self.accelerator.is_main_process:
            try:
                content = json.loads((self.folder / "model" / "results.json").read_text(encoding="utf-8"))
                if content["steps"] == self.num_steps:
                    told = (content["baseline"], content["final"], content.get("measured", {}))
            except (OSError, ValueError, KeyError, TypeError):
                pass  # no model, or one from another run: export again
        told = gather_object([told])[0]
        if told is None:
            return None
        model_dir = self.folder / "model"
        logger.info(f"{self.folder} is already finished (step {self.num_steps}); {model_dir} is unchanged.")
        Publisher(self.recipe.train, self.accelerator).finish(self.num_steps)
        return self._result(*told)

    def begin(self) -> None:
        """Log what will be measured, and measure the baseline before the first step."""
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
        """A progress bar; it updates less often if stderr is not a terminal."""
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
        """The micro-batches of a step, unless the run has to stop here; all processes stop together.

        Raises:
            Interrupted: stopped by a signal, after a checkpoint.
            WorkerError, UserError: the data are unreadable.
            RunError: the data of another process are unreadable.
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
        if micro == 0 and (failed or signum or due):  # a run cannot resume within a step
            saved = self.save(step)
            if signum and not failed:
                self.metrics.close()
                raise Interrupted(signum, step, saved)
        if failed:
            self.metrics.close()
            raise failure or RunError("This process stops because another one failed.")
        return batch

    def freeze_backbone(self, step: int) -> None:
        """`train.freeze_backbone_epochs`: until then, the backbone gets no gradients and no optimizer updates."""
        epochs = self.recipe.train.freeze_backbone_epochs
        frozen = step < round(epochs * self.steps_per_epoch)
        if frozen != self._frozen:
            change = timm.utils.freeze if frozen else timm.utils.unfreeze
            # Its BatchNorm statistics still adapt to the new images.
            change(self.model.get_submodule("encoder.backbone"), include_bn_running_stats=False)
            self._frozen = frozen

    def inputs_of(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """The model's inputs on the device. Also counts unreadable files."""
        self.totals.add_skipped(batch["skipped"])
        self.index = batch["index"]
        self._inputs = self.stage2(batch, self.accelerator.device)
        return self._inputs

    def add_loss(self, loss: torch.Tensor, step: int) -> None:
        """Add a micro-batch's loss, and record the first step at which it was not finite, without synchronizing."""
        self.throughput.add_loss(loss / self.recipe.train.accumulation)
        self._bad_step = torch.where((self._bad_step < 0) & ~loss.isfinite(), step, self._bad_step)

    def log(self, done: int, grad_norm: torch.Tensor, progress: tqdm) -> None:
        """Log loss, speed and the method's metrics to `metrics.jsonl`, trackers and progress bar."""
        self.check(done, weights=False)
        self.totals.synchronize()
        counted = self.modality.name
        values = self.throughput.read(done, self.recipe.train.batch_size, counted)
        self.totals.add_time(values.pop("seconds"), values["data_wait"])
        values["lr"] = max(group["lr"] for group in self.optimizer.param_groups)
        # The norm of sharded gradients is a partial DTensor that must still be reduced over processes.
        norm = grad_norm.full_tensor() if hasattr(grad_norm, "full_tensor") else grad_norm
        values |= {"grad_norm": norm.item(), **peak_memory(self.accelerator.device)}
        self.metrics.record(done, {**values, "skipped": self.totals.skipped, **self.model.metrics()})
        speed = f"{values[f'{counted}_per_second']:.0f} {counted}/s"
        progress.set_postfix_str(f"loss {values['loss']:.4g}, lr {values['lr']:.3g}, {speed}", refresh=False)

    def measure(self, done: int, progress: tqdm) -> None:
        """Measure accuracy and collapse diagnostics."""
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
        """Raise NonFiniteLoss on all processes if loss or weights are not finite on any."""
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
        """Write a checkpoint; returns False if the write failed."""
        with self.throughput.paused():
            self.check(step)
            self.totals.synchronize()
            state = RunState(step, self.recipe.to_dict(), self.totals.to_dict(), data=self.examples.fingerprint)
            own = {}
            if self.accelerator.is_main_process:  # only it has the metrics and the monitor's window
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
        """Measurements before training and at `step`."""
        counted = None if self.examples.streamed else self.examples.count  # a stream's number may be only the recipe's
        where = hardware(self.accelerator.num_processes, str(self.accelerator.device))
        figures = (self.metrics.at(0), self.metrics.at(step))
        measured = self.examples.measured
        return Results(*figures, counted, step, self.totals.seconds, where, versions(), measured=measured)

    def share(self, done: int) -> None:
        """After a checkpoint: export milestone models, and push if due. Failures do not stop the run."""
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
        """Export the model, push it, and write the report.

        Raises:
            UserError: the export could not be written; the checkpoints are kept.
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
        summary["ignored"] = sum(map(ignored_below, self.recipe.data.paths if self.recipe.data.path else ()))
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
    what = "weights or features were NaN or infinite before" if weights else "loss became NaN or infinite at"
    good = f"{kept[-1]}, which train.init_from can start from" if kept else "none, since none was written yet"
    return (
        f"The {what} step {step}; lower optim.lr (it was {rate:.3g} there), lengthen the warm-up or set "
        f"optim.clip_grad_norm, in another train.output_dir. The last good checkpoint is {good}."
    )
