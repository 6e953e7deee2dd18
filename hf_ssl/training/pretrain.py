# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""The training loop: step, log, measure, save, stop.

A run that is killed anywhere and restarted gives the same result: data, views and schedules are functions of the step,
and a checkpoint holds everything else. The loop does not depend on the method or the modality (see the hooks of
`hf_ssl.models`, and `hf_ssl.data.modality`).
"""

from collections.abc import Iterator
from contextlib import closing, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from ..optim import set_learning_rates
from ..recipe import Recipe
from .memory import enough_memory
from .run import NonFiniteLoss, PretrainResult, Run
from .setup import build, open_run
from .signals import Interrupted, StopSignals


__all__ = ["Interrupted", "NonFiniteLoss", "PretrainResult", "pretrain"]


def pretrain(recipe: Recipe, dataset=None, bank=None, queries=None, *, report: bool = False) -> PretrainResult:
    """Train a recipe and export the model. Resumes from the newest checkpoint, if there is one.

    Args:
        recipe: see `hf_ssl.recipe`.
        dataset: a `datasets.Dataset` or `IterableDataset` to train on instead of `recipe.data.path`.
        bank, queries: labeled datasets for the kNN monitor instead of `recipe.monitor.path`.
        report: write `report.html` at the end, see `hf_ssl.report`; needs the extra `[report]`.

    Raises:
        UserError: the recipe, the data or the folders are unusable.
        NonFiniteLoss: the loss or the weights became NaN or infinite.
        WorkerError: a loader worker was killed.
        Interrupted: stopped by SIGTERM, SIGINT or SIGHUP.
    """
    with open_run(recipe, dataset, bank, queries) as run:
        return run.finished() or train(run, report)


def train(run: Run, report: bool = False) -> PretrainResult:
    """Train a run to its end and export the model."""
    build(run)
    run.begin()
    with StopSignals() as stop, run.progress() as progress, closing(iter(run.loader)) as batches:
        for step in range(run.start, run.num_steps):
            done = step + 1
            log_now = run.due(done, run.recipe.train.log_every)
            # Step, or stop before it.
            with enough_memory(run.recipe, run.accelerator):
                output, norm = train_step(run, run.micro_batches(batches, stop, step), step, log_now)
            run.monitor.observe(output, run.index)
            progress.update()
            # Once in a while: log.
            if log_now and norm is not None:  # never None here; for the type checker
                run.log(done, norm, progress)
            # Once in a while: measure.
            if run.due(done, run.every_monitor):
                run.measure(done, progress)
            # Once in a while: save, and share what was saved.
            if run.due(done, run.every_checkpoint) or run.checkpoints.is_milestone(done):
                run.save(done)
                run.share(done)
    return run.finish(report)


def train_step(
    run: Run, micro_batches: Iterator[dict[str, Any]], step: int, log: bool
) -> tuple[Any, torch.Tensor | None]:
    """One optimizer step over all micro-batches.

    Returns:
        The output of the last forward pass, and the gradient norm if it is clipped or logged.
    """
    accelerator, accumulation, optim = run.accelerator, run.recipe.train.accumulation, run.recipe.optim
    now = (step, run.num_steps, run.steps_per_epoch)
    for micro, batch in enumerate(micro_batches):
        if micro == 0:
            set_learning_rates(run.optimizer, optim, *now)
            run.model.before_step(*now)
            run.freeze_backbone(step)
        # FSDP must reduce every micro-batch: accumulating unsharded gradients would need the memory that it saves.
        synchronize = micro == accumulation - 1 or accelerator.is_fsdp2
        with nullcontext() if synchronize else accelerator.no_sync(run.wrapped):
            output = run.wrapped(**run.inputs_of(batch))
            accelerator.backward(output.loss / accumulation)
        run.add_loss(output.loss.detach(), step)
    run.model.before_optimizer_step(*now)
    norm = None
    if optim.clip_grad_norm is not None:
        norm = accelerator.clip_grad_norm_(run.model.parameters(), optim.clip_grad_norm)
    elif log:
        norm = grad_norm(run.model, run.optimizer, accelerator)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    run.model.after_step(*now)
    run.consumed = run.loader.state()
    return output, norm


def grad_norm(model: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator) -> torch.Tensor:
    """The norm of all gradients, without clipping."""
    accelerator.unscale_gradients(optimizer)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return nn.utils.get_total_norm(gradients)
