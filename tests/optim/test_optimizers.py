# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Optimizers take the published steps."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hf_ssl.optim import Larc, Lars, build_optimizer, param_groups
from hf_ssl.recipe import OptimConfig


FIXTURES = Path(__file__).parents[1] / "fixtures"


def replay(case, names: list[str], optimizer: torch.optim.Optimizer, tensors: dict, rates, is_none=None) -> None:
    """Take five steps with the stored gradients, and compare the parameters after each."""
    for step in range(5):
        for i, name in enumerate(names):
            none = is_none is not None and is_none[i, step]
            tensors[name].grad = None if none else torch.tensor(case[f"grad/{name}"][step], dtype=torch.float64)
        rates(step)
        optimizer.step()
        for name in names:
            after = case[f"after/{name}"][step]
            error = np.abs(tensors[name].detach().numpy() - after).max() / max(np.abs(after).max(), 1e-12)
            assert error < 1e-9, (name, step, error)


def load(path: str):
    case = np.load(FIXTURES / path)
    names = [key.removeprefix("param/") for key in case.files if key.startswith("param/")]
    tensors = {name: nn.Parameter(torch.tensor(case[f"param/{name}"], dtype=torch.float64)) for name in names}
    return case, names, tensors


@pytest.mark.parametrize("file", ["lars_barlow_00.npz", "lars_barlow_01.npz"])
def test_lars_is_that_of_barlow_twins(file):
    case, names, tensors = load(file)
    optim = OptimConfig(
        name="lars", lr=1.0, lr_bias_and_norm=1.0, exclude_bias_and_norm=True, weight_decay=case["weight_decay"].item()
    )
    optimizer = build_optimizer(nn.ParameterDict({f"p_{name}": p for name, p in tensors.items()}), optim, 256)
    assert isinstance(optimizer, Lars)

    def rates(step):
        for group in optimizer.param_groups:
            group["lr"] = case["lr_biases" if group["excluded"] else "lr_weights"][step].item()

    replay(case, names, optimizer, tensors, rates)


@pytest.mark.parametrize("file", ["lars_byol_00.npz", "lars_byol_01.npz"])
def test_lars_is_that_of_byol(file):
    case, names, tensors = load(file)
    optim = OptimConfig(name="lars", exclude_bias_and_norm=True, weight_decay=case["weight_decay"].item())
    optimizer = build_optimizer(nn.ParameterDict({f"p_{name}": p for name, p in tensors.items()}), optim, 256)
    ours = {id(p) for group in optimizer.param_groups if group["excluded"] for p in group["params"]}
    order = [str(name) for name in case["names"]]
    assert {id(tensors[name]) for name, out in zip(order, case["excluded"], strict=True) if out} == ours

    def rates(step):
        for group in optimizer.param_groups:
            group["lr"] = case["lr"][step].item()

    replay(case, names, optimizer, tensors, rates)


@pytest.mark.parametrize(
    "file", ["larc_sgd_00.npz", "larc_sgd_01.npz", "larc_sgd_none_00.npz", "larc_sgd_none_01.npz"]
)
def test_larc_is_that_of_swav(file):
    case, _, tensors = load(file)
    names = [str(name) for name in case["names"]]
    optimizer = Larc(
        list(tensors.values()),
        lr=1.0,
        momentum=case["momentum"].item(),
        weight_decay=case["weight_decay"].item(),
        trust_coefficient=case["trust_coefficient"].item(),
    )

    def rates(step):
        optimizer.param_groups[0]["lr"] = case["lr"][step].item()

    replay(case, names, optimizer, tensors, rates, case["grad_is_none"])


def network() -> nn.Module:
    model = nn.Module()
    model.encoder = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    model.predictor = nn.Linear(4, 4)
    model.target_encoder = nn.Conv2d(3, 4, 1)
    model.frozen = nn.Linear(2, 2, bias=False).requires_grad_(False)
    return model


def test_targets_and_frozen_parameters_are_never_optimized():
    model = network()
    optimized = {id(p) for group in param_groups(model, OptimConfig(), 256) for p in group["params"]}
    assert id(model.target_encoder.weight) not in optimized and id(model.frozen.weight) not in optimized
    assert id(model.encoder[0].weight) in optimized


def test_biases_and_norms_get_their_own_rate_and_no_decay():
    optim = OptimConfig(name="lars", lr=0.2, lr_bias_and_norm=0.0048, weight_decay=1e-6, exclude_bias_and_norm=True)
    groups = {group["excluded"]: group for group in param_groups(network(), optim, 2048)}
    assert groups[True]["peak_lr"] == pytest.approx(0.0048 * 8) and groups[True]["weight_decay"] == 0
    assert groups[False]["peak_lr"] == pytest.approx(0.2 * 8) and groups[False]["weight_decay"] == 1e-6
    assert all(p.ndim == 1 for p in groups[True]["params"]) and all(p.ndim > 1 for p in groups[False]["params"])


def test_simsiam_decays_everything_and_only_its_predictor_keeps_the_rate():
    model = network()
    groups = param_groups(model, OptimConfig(lr=0.05, weight_decay=1e-4, fixed_predictor_lr=True), 512)
    assert all(group["weight_decay"] == 1e-4 and group["peak_lr"] == pytest.approx(0.1) for group in groups)
    fixed = {id(p) for group in groups if group["fixed_lr"] for p in group["params"]}
    assert fixed == {id(p) for p in model.predictor.parameters()}


def test_an_absolute_rate_does_not_follow_the_batch():
    groups = param_groups(network(), OptimConfig(lr=4.8, lr_per=None), 4096)
    assert {group["peak_lr"] for group in groups} == {4.8}


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "lars", "larc"])
def test_every_optimizer_learns_and_continues_from_its_state(name):
    torch.manual_seed(0)
    x, y = torch.randn(64, 8), torch.randn(64, 1)
    optim = OptimConfig(name=name, lr={"lars": 5.0, "larc": 20.0}.get(name, 0.01), lr_per=None)

    def start():
        torch.manual_seed(1)
        model = nn.Linear(8, 1)
        return model, build_optimizer(model, optim, 64)

    def learn(model, optimizer, steps):
        for _ in range(steps):
            loss = (model(x) - y).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.item()

    whole, optimizer = start()
    first = learn(whole, optimizer, 1)
    assert learn(whole, optimizer, 19) < first
    half, optimizer = start()
    learn(half, optimizer, 10)
    continued, fresh = start()
    continued.load_state_dict(half.state_dict())
    fresh.load_state_dict(optimizer.state_dict())
    learn(continued, fresh, 10)
    assert torch.equal(continued.weight, whole.weight)
