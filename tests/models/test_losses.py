# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Losses equal those of the published code, in value and gradient."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hf_ssl.models import (
    BarlowTwinsConfig,
    BarlowTwinsForPreTraining,
    SwavConfig,
    SwavForPreTraining,
    barlow_twins_loss,
    byol_loss,
    simsiam_loss,
    sinkhorn,
    swav_loss,
)
from hf_ssl.models.modeling_barlow_twins import update_running_statistics


FIXTURES = Path(__file__).parents[1] / "fixtures"
DTYPES = [torch.float32, torch.float64]


def cases(name: str) -> list[Path]:
    found = sorted(FIXTURES.glob(f"{name}_*.npz"))
    assert found
    return found


def assert_close(ours, theirs, bound: float) -> None:
    """Compare relative to the largest value, or to 1 for a small loss."""
    ours, theirs = np.asarray(ours.detach() if torch.is_tensor(ours) else ours), np.asarray(theirs)
    scale = max(1.0, abs(theirs)) if theirs.ndim == 0 else np.abs(theirs).max()
    assert np.abs(ours - theirs).max() / scale < bound


def leaf(array, dtype) -> torch.Tensor:
    return torch.tensor(array, dtype=dtype, requires_grad=True)


def bound(dtype, single: float) -> float:
    return 2e-7 if dtype == torch.float64 else single


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("path", cases("barlow_twins_loss"), ids=lambda p: p.stem)
def test_barlow_twins_loss(path, dtype):
    case = np.load(path)
    z_a, z_b = leaf(case["z_a"], dtype), leaf(case["z_b"], dtype)
    loss = barlow_twins_loss(z_a, z_b, lambd=case["lambd"].item(), eps=case["eps"].item())
    loss.backward()
    # 2e-6 in single precision instead of 5e-5, which would hide a forgotten eps
    assert_close(loss, case["loss"], bound(dtype, 2e-6))
    assert_close(z_a.grad, case["grad_z_a"], bound(dtype, 5e-5))
    assert_close(z_b.grad, case["grad_z_b"], bound(dtype, 5e-5))


@pytest.mark.parametrize("path", cases("barlow_twins_loss"), ids=lambda p: p.stem)
def test_barlow_twins_keeps_the_running_statistics_of_the_released_batchnorm(path):
    case = np.load(path)
    z_a, z_b = torch.tensor(case["z_a"]), torch.tensor(case["z_b"])
    model = BarlowTwinsForPreTraining(BarlowTwinsConfig(backbone="test_resnet", projector_dims=[z_a.shape[1]]))
    for z in (z_a, z_b):
        update_running_statistics(model.bn, z)
    assert_close(model.bn.running_mean, case["bn_running_mean"], 5e-6)
    assert_close(model.bn.running_var, case["bn_running_var"], 5e-6)


def test_barlow_twins_does_not_see_a_shift_unless_uncentered():
    torch.manual_seed(0)
    z_a = torch.randn(256, 64)
    z_b = z_a + 0.5 * torch.randn(256, 64)
    assert barlow_twins_loss(z_a + 3, z_b + 3).item() == pytest.approx(barlow_twins_loss(z_a, z_b).item(), rel=1e-4)
    assert barlow_twins_loss(z_a + 3, z_b + 3, center=False) > 5 * barlow_twins_loss(z_a, z_b, center=False)


def test_barlow_twins_uncentered_is_the_cosine_along_the_batch():
    torch.manual_seed(0)
    z_a, z_b = torch.randn(32, 8).double() + 1, torch.randn(32, 8).double()
    c = F.normalize(z_a, dim=0).T @ F.normalize(z_b, dim=0)
    off = c.square().sum() - c.diagonal().square().sum()
    expected = (c.diagonal() - 1).square().sum() + 0.01 * off
    assert barlow_twins_loss(z_a, z_b, lambd=0.01, center=False).item() == pytest.approx(expected.item(), rel=1e-9)


def test_identical_views_leave_only_the_effect_of_eps_on_the_diagonal():
    torch.manual_seed(0)
    z = torch.randn(512, 1).double()
    var = z.var(unbiased=False)
    expected = (1 - var / (var + 0.1)).square()
    assert barlow_twins_loss(z, z, eps=0.1).item() == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("center", [True, False])
def test_barlow_twins_needs_no_matrix_where_the_batch_is_smaller_than_the_projections(dtype, center):
    torch.manual_seed(0)
    views = torch.randn(2, 24, 100, dtype=dtype)
    views[1] += views[0]
    found = []
    for explicit in (True, False):
        z_a, z_b = (view.clone().requires_grad_() for view in views)
        loss = barlow_twins_loss(z_a, z_b, center=center, explicit_matrix=explicit)
        loss.backward()
        found.append((loss.detach(), z_a.grad, z_b.grad))
    for plain, fast in zip(*found, strict=True):
        assert_close(fast, plain.numpy(), bound(dtype, 2e-6))
    large_batch = torch.randn(2, 8, 4, dtype=dtype)
    assert torch.equal(barlow_twins_loss(*large_batch), barlow_twins_loss(*large_batch, explicit_matrix=False))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("path", cases("simsiam_loss"), ids=lambda p: p.stem)
def test_simsiam_loss(path, dtype):
    case = np.load(path)
    p1, p2, z1, z2 = (leaf(case[name], dtype) for name in ("p1", "p2", "z1", "z2"))
    loss = simsiam_loss(p1, p2, z1, z2)
    loss.backward()
    assert_close(loss, case["loss"], bound(dtype, 2e-6))
    assert_close(p1.grad, case["grad_p1"], bound(dtype, 2e-6))
    assert_close(p2.grad, case["grad_p2"], bound(dtype, 2e-6))
    assert z1.grad is None and z2.grad is None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("path", cases("byol_loss"), ids=lambda p: p.stem)
def test_byol_loss(path, dtype):
    case = np.load(path)
    p1, p2, z1, z2 = (leaf(case[name], dtype) for name in ("p1", "p2", "z1", "z2"))
    loss = byol_loss(p1, p2, z1, z2)
    loss.backward()
    assert_close(loss, case["loss"], bound(dtype, 2e-6))
    assert_close(p1.grad, case["grad_p1"], bound(dtype, 2e-6))
    assert_close(p2.grad, case["grad_p2"], bound(dtype, 2e-6))
    assert z1.grad is None and z2.grad is None
    assert loss.item() == pytest.approx(4 + 4 * simsiam_loss(p1, p2, z1, z2).item(), rel=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("path", cases("swav_sinkhorn"), ids=lambda p: p.stem)
def test_sinkhorn_also_where_exponentials_overflow(path, dtype):
    case = np.load(path)
    codes = sinkhorn(torch.tensor(case["scores"], dtype=dtype), case["epsilon"].item(), case["iterations"].item())
    assert_close(codes, case["codes"], bound(dtype, 1e-5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sinkhorn_of_half_precision_scores_is_finite_and_its_rows_sum_to_one(dtype):
    scores = torch.randn(64, 40).clamp(-1, 1).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        codes = sinkhorn(scores, epsilon=0.03)
    assert codes.dtype == torch.float32
    assert torch.allclose(codes.sum(1), torch.ones(64), atol=1e-5)


@pytest.mark.parametrize("path", cases("swav_loss"), ids=lambda p: p.stem)
def test_swav_loss_queue_and_prototypes(path):
    """The whole head in the released training loop, on stored projections."""
    case = np.load(path)
    queue = case["queue_before"] if "queue_before" in case.files else None
    assign = case["crops_for_assign"].tolist()
    config = SwavConfig(
        backbone="test_resnet",
        projector_dims=[case["z"].shape[2]],
        num_prototypes=len(case["prototypes"]),
        temperature=case["temperature"].item(),
        epsilon=case["epsilon"].item(),
        sinkhorn_iterations=case["iterations"].item(),
        crops_for_assign=assign,
        queue_length=0 if queue is None else queue.shape[1],
        queue_start_epoch=0,
    )
    model = SwavForPreTraining(config).train()
    with torch.no_grad():
        model.prototypes.weight.copy_(torch.tensor(case["prototypes"]))
        if queue is not None:
            model.queue.copy_(torch.tensor(queue))
    model.before_step(0, 10, 1)
    assert_close(model.prototypes.weight, case["prototypes_normalized"], 1e-6)
    raw = leaf(case["z"], torch.float32)
    z = F.normalize(raw, dim=2)
    scores = model.prototypes(z)
    codes = model._assign(scores.detach(), z.detach(), len(z))
    loss = swav_loss(scores, codes, assign, config.temperature)
    loss.backward()
    assert_close(codes, case["codes"], 1e-5)
    assert_close(loss, case["loss"], 1e-5)
    assert_close(raw.grad, case["grad_z"], 1e-5)
    assert_close(model.prototypes.weight.grad, case["grad_prototypes"], 1e-5)
    if queue is not None:
        assert_close(model.queue, case["queue_after"], 1e-6)


def test_losses_are_computed_in_float32_under_autocast():
    torch.manual_seed(0)
    z = torch.randn(4, 64, 32)
    for loss in (barlow_twins_loss(z[0], z[1]), byol_loss(*z), simsiam_loss(*z)):
        assert loss.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(barlow_twins_loss(z[0], z[1]), barlow_twins_loss(z[0], z[1]).float())
        mixed = torch.stack([barlow_twins_loss(z[0], z[1]), byol_loss(*z), simsiam_loss(*z)])
    plain = torch.stack([barlow_twins_loss(z[0], z[1]), byol_loss(*z), simsiam_loss(*z)])
    assert torch.equal(mixed, plain)
