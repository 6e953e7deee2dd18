# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Training loop of classifiers and dense probes. As in pretraining, a killed run resumes exactly."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..checkpoint_folder import RunState
from ..data.loader import TrainLoader
from ..errors import UserError
from ..recipe import TrainConfig
from .accelerator import fit_model
from .checkpoint import Checkpoints
from .signals import Interrupted, StopSignals


_LOOK = 10  # steps between checks of the loss


@dataclass
class Plan:
    """Definition of a training loop.

    Args:
        loader: (first step) -> batches from there on.
        loss: (wrapped network, batch) -> loss of this process; the objective is its mean over processes.
        rate: step -> learning rate as a fraction of each parameter group's `peak_lr`.
        about: description of the run, stored in checkpoints as its recipe.
        clip: maximum gradient norm.
    """

    num_steps: int
    steps_per_epoch: int
    loader: Callable[[int], TrainLoader]
    loss: Callable[[nn.Module, dict[str, Any]], Tensor]
    rate: Callable[[int], float]
    about: dict[str, Any]
    clip: float | None = None


def train_steps(
    plan: Plan,
    network: nn.Module,
    optimizer: Any,
    *,
    folder: Path,
    train: TrainConfig,
    accelerator: Accelerator,
) -> tuple[Any, list[str]]:
    """Train, resuming from the newest checkpoint in `folder` if there is one.

    Returns:
        The trained network, and the names of unreadable files.

    Raises:
        UserError: the loss is not finite.
        Interrupted: stopped by a signal.
    """
    network.train()
    wrapped, optimizer = accelerator.prepare(fit_model(network, train, accelerator), optimizer)
    network = accelerator.unwrap_model(wrapped)
    checkpoints = Checkpoints(folder / "checkpoints", 1, accelerator)
    found, start, failed = checkpoints.newest(), 0, set()
    if found is not None:
        found, _ = checkpoints.load(found, network, optimizer)
        start, failed = found.state.step, set(found.state.totals.get("skipped_names", ()))
    bad = torch.zeros((), dtype=torch.bool, device=accelerator.device)
    bar: Any
    with (
        StopSignals() as stop,
        tqdm(total=plan.num_steps, initial=start, disable=not accelerator.is_main_process) as bar,
    ):
        for step, batch in enumerate(plan.loader(start), start):
            failed |= {f"{name} ({reason})" for name, reason in batch["skipped"]}
            due = step > start and step % plan.steps_per_epoch == 0
            look = due or step % _LOOK == 0  # rarely, because it synchronizes with the GPU
            signum, diverged = stop.agreed(look and bool(bad))
            if diverged:
                raise _no_number(step)
            if signum or due:
                state = RunState(step, plan.about, {"skipped_names": _of_all(failed)})
                saved = checkpoints.save(step, network, optimizer, state)
                if signum:
                    raise Interrupted(signum, step, saved)
            share = plan.rate(step)
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * share
            loss = plan.loss(wrapped, batch)
            bad |= ~loss.detach().isfinite()
            accelerator.backward(loss)
            if plan.clip is not None:
                accelerator.clip_grad_norm_(network.parameters(), plan.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            bar.update()
            if look:
                bar.set_postfix_str(f"loss {loss.item():.4g}", refresh=False)
        if stop.agreed(bool(bad))[1]:
            raise _no_number(plan.num_steps)
    return network, _of_all(failed)


def _of_all(names: set[str]) -> list[str]:
    """Union of the names of all processes."""
    return sorted(set(gather_object(sorted(names))))


def _no_number(step: int) -> UserError:
    return UserError(f"The loss became NaN or infinite before step {step}; lower the learning rate.")
