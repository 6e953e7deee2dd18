# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Learning rates as pure functions of the step, in double precision."""

import math

from torch.optim import Optimizer

from ..recipe import OptimConfig


def lr_fraction(optim: OptimConfig, step: int, num_steps: int, steps_per_epoch: int) -> float:
    """Learning rate at a step (counted from 0) as a fraction of its peak.

    Linear warm-up, then a cosine, or a constant with an optional linear cool-down. The cosine starts after the
    warm-up, or at step 0 with `cosine_over="run"`, where it has already decayed a little by the end of the warm-up
    (VISSL). With `schedule_by="epoch"`, all steps of an epoch use the value of its first step (SimSiam). With
    `warmup_reaches_peak`, the last warm-up step is at the peak (SwAV's linspace), otherwise the first step after it is
    (Barlow Twins, BYOL).
    """
    warmup = optim.warmup_steps
    if warmup is None:
        warmup = round(optim.warmup_epochs * steps_per_epoch)
    if optim.schedule_by == "epoch":
        step = step // steps_per_epoch * steps_per_epoch
    if step < warmup:
        length = warmup - 1 if optim.warmup_reaches_peak else warmup
        return optim.warmup_lr_fraction + (1 - optim.warmup_lr_fraction) * step / max(length, 1)
    if optim.schedule == "constant":
        cooldown = min(round(optim.cooldown_epochs * steps_per_epoch), num_steps - warmup)
        share = min(1.0, (num_steps - step) / cooldown) if cooldown else 1.0
        return optim.final_lr_fraction + (1 - optim.final_lr_fraction) * share
    start = 0 if optim.cosine_over == "run" else warmup
    cosine = (1 + math.cos(math.pi * (step - start) / max(num_steps - start, 1))) / 2
    return optim.final_lr_fraction + (1 - optim.final_lr_fraction) * cosine


def set_learning_rates(
    optimizer: Optimizer, optim: OptimConfig, step: int, num_steps: int, steps_per_epoch: int
) -> None:
    """Set the learning rates of `param_groups`' groups for a step."""
    fraction = lr_fraction(optim, step, num_steps, steps_per_epoch)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * (1.0 if group["fixed_lr"] else fraction)
