# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Schedules give the published learning rates at every step."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hf_ssl.models.modeling_byol import tau_at
from hf_ssl.optim import build_optimizer, lr_fraction, set_learning_rates
from hf_ssl.recipe import OptimConfig


FIXTURES = Path(__file__).parents[1] / "fixtures"


def fractions(optim: OptimConfig, num_steps: int, steps_per_epoch: int) -> np.ndarray:
    return np.array([lr_fraction(optim, step, num_steps, steps_per_epoch) for step in range(num_steps)])


@pytest.mark.parametrize("file", ["schedule_barlow_00.npz", "schedule_barlow_01.npz"])
def test_barlow_twins(file):
    case = np.load(FIXTURES / file)
    steps = case["epochs"] * case["steps_per_epoch"]
    optim = OptimConfig(name="lars", warmup_epochs=case["warmup_epochs"].item(), final_lr_fraction=0.001)
    base = fractions(optim, steps, case["steps_per_epoch"]) * case["batch_size"] / 256
    np.testing.assert_allclose(base * case["learning_rate_weights"], case["lr_weights"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(base * case["learning_rate_biases"], case["lr_biases"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("file", ["schedule_swav_00.npz", "schedule_swav_01.npz"])
def test_swav(file):
    case = np.load(FIXTURES / file)
    base = case["base_lr"].item()
    optim = OptimConfig(
        warmup_epochs=case["warmup_epochs"].item(),
        warmup_lr_fraction=case["start_warmup"].item() / base,
        warmup_reaches_peak=True,
        final_lr_fraction=case["final_lr"].item() / base,
    )
    steps = (case["epochs"] * case["steps_per_epoch"]).item()
    ours = base * fractions(optim, steps, case["steps_per_epoch"].item())
    np.testing.assert_allclose(ours, case["lr"], rtol=0, atol=1e-12)


def test_simsiam_decays_by_epoch_and_its_predictor_stays():
    case = np.load(FIXTURES / "schedule_simsiam_00.npz")
    epochs, peak = case["epochs"].item(), case["base_lr"].item() * case["batch_size"].item() / 256
    optim = OptimConfig(lr=case["base_lr"].item(), schedule_by="epoch", fixed_predictor_lr=True)
    ours = peak * fractions(optim, epochs * 5, 5).reshape(epochs, 5)
    np.testing.assert_allclose(ours, np.repeat(case["lr_per_epoch"][:, None], 5, 1), rtol=0, atol=1e-12)
    model = torch.nn.Module()
    model.encoder, model.predictor = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    optimizer = build_optimizer(model, optim, case["batch_size"].item())
    set_learning_rates(optimizer, optim, 5 * 7, epochs * 5, 5)
    rates = {group["fixed_lr"]: group["lr"] for group in optimizer.param_groups}
    assert rates[True] == pytest.approx(case["lr_predictor_fixed"][7])
    assert rates[False] == pytest.approx(case["lr_per_epoch"][7])


@pytest.mark.parametrize("file", ["schedule_byol_00.npz", "schedule_byol_01.npz"])
def test_byol(file):
    case = np.load(FIXTURES / file)
    total = case["total_steps"].item()
    optim = OptimConfig(warmup_epochs=case["warmup_steps"].item())  # one step per epoch
    peak = case["base_learning_rate"] * case["batch_size"] / 256
    ours = [lr_fraction(optim, step, total, 1) * peak for step in range(total + 1)]
    np.testing.assert_allclose(ours, case["lr"], rtol=2e-7, atol=2e-7 * peak)
    taus = [tau_at(step, total, case["base_target_ema"].item()) for step in range(total + 1)]
    np.testing.assert_allclose(taus, case["tau"], rtol=2e-7)


def test_a_cosine_over_the_run_is_vissls():
    """Linear from 0.3 to 4.8 over 2.5% of the run, then the rest of a cosine from 4.8 to 0.0048 over the whole run."""
    steps, warmup = 4000, 100
    optim = OptimConfig(warmup_steps=warmup, warmup_lr_fraction=0.3 / 4.8, final_lr_fraction=0.001, cosine_over="run")
    ours = 4.8 * fractions(optim, steps, 50)
    where = np.arange(steps) / steps
    line = 0.3 + (4.8 - 0.3) * where / 0.025
    cosine = 0.0048 + (4.8 - 0.0048) * (1 + np.cos(np.pi * where)) / 2
    np.testing.assert_allclose(ours, np.where(where < 0.025, line, cosine), rtol=0, atol=1e-12)
    after = OptimConfig(warmup_steps=400, final_lr_fraction=0.001)
    run = OptimConfig(warmup_steps=400, final_lr_fraction=0.001, cosine_over="run")
    apart = np.abs(fractions(run, steps, 50) - fractions(after, steps, 50)).max()
    assert 0.05 < apart < 0.1
    assert OptimConfig().cosine_over == "after_warmup"


def test_constant_stays_at_the_peak_after_its_warmup():
    optim = OptimConfig(schedule="constant", warmup_epochs=1)
    assert fractions(optim, 6, 2).tolist() == [0, 0.5, 1, 1, 1, 1]


def test_a_constant_rate_goes_down_in_a_line_at_the_end():
    optim = OptimConfig(schedule="constant", cooldown_epochs=2)
    assert fractions(optim, 8, 2).tolist() == [1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    short = OptimConfig(schedule="constant", cooldown_epochs=9, warmup_epochs=1)
    assert fractions(short, 6, 2).tolist() == [0, 0.5, 1, 0.75, 0.5, 0.25]
