# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Losses, codes, queue and statistics are those of the global batch for any number of processes."""

import numpy as np
import pytest
import timm.layers
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hf_ssl.models import (
    METHODS,
    SwavConfig,
    SwavForPreTraining,
    barlow_twins_loss,
    byol_loss,
    simsiam_loss,
    sinkhorn,
    swav_loss,
)
from hf_ssl.models.modeling_barlow_twins import global_statistics
from hf_ssl.training.accelerator import synchronize_batchnorm
from tests.distributed.processes import mean_over_ranks, run_on_ranks, share
from tests.methods import IMAGE_METHODS, fields
from tests.models.test_losses import assert_close, cases


WORLDS = [1, 2, 4]
ORACLE = 2e-7  # float64 against oracles stored in float32
DOUBLE = 1e-12  # float64 against float64
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def drifting(*shape: int, dim: int = 0, seed: int = 0) -> torch.Tensor:
    """Random numbers whose mean and std grow along the batch, so that the ranks' parts differ."""
    values = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    along = torch.linspace(0, 1, shape[dim], dtype=torch.float64).view([-1] + [1] * (len(shape) - dim - 1))
    return values * (0.5 + along) + 2 * along


def unit(*shape: int) -> torch.Tensor:
    return F.normalize(drifting(*shape) - 1, dim=-1)


# ---------------------------------------------------------------------------------------------- computed on each rank


def _swav(z: torch.Tensor) -> torch.Tensor:
    scores = F.normalize(z, dim=2) @ unit(8, 5).T
    return swav_loss(scores, torch.stack([sinkhorn(rows.detach()) for rows in scores[:2]]))


LOSSES = {
    "barlow_twins": lambda z: barlow_twins_loss(z[0], z[1]),
    "barlow_twins_uncentered": lambda z: barlow_twins_loss(z[0], z[1], center=False),
    "barlow_twins_without_matrix": lambda z: barlow_twins_loss(*(z[:2] @ unit(20, 5).T), explicit_matrix=False),
    "byol": lambda z: byol_loss(z[0], z[1], z[2] - 1, z[3] - 1),
    "simsiam": lambda z: simsiam_loss(z[0], z[1], z[2] - 1, z[3] - 1),
    "swav": _swav,
}


def losses() -> dict:
    """Every loss, on the outputs (V, B, D) of a linear layer."""
    found = {}
    for name, loss_of in LOSSES.items():
        torch.manual_seed(0)
        layer = nn.Linear(6, 5).double()
        loss = loss_of(layer(share(drifting(4, 16, 6, dim=1), 1)))
        loss.backward()
        found[name] = {"loss": loss.detach(), "grad_weight": mean_over_ranks(layer.weight.grad)}
    return found


def barlow_twins_oracles() -> dict:
    found = {}
    for path in cases("barlow_twins_ranks"):
        case = {name: torch.tensor(value).double() for name, value in np.load(path).items() if name != "source"}
        weight = case["weight"].requires_grad_()
        z_a, z_b = (F.linear(share(case[x]), weight, case["bias"]) for x in ("x_a", "x_b"))
        loss = barlow_twins_loss(z_a, z_b, case["lambd"].item(), case["eps"].item())
        loss.backward()
        found[path.stem] = {
            "loss": loss.detach(),
            "grad_weight": mean_over_ranks(weight.grad),
            "z_a": global_statistics(z_a),
            "z_b": global_statistics(z_b),
        }
    return found


def sinkhorn_oracles() -> dict:
    found = {}
    for path in cases("swav_sinkhorn"):
        case = np.load(path)
        found[path.stem] = {
            name: sinkhorn(
                share(torch.tensor(case["scores"], dtype=dtype)), case["epsilon"].item(), case["iterations"].item()
            )
            for name, dtype in DTYPES.items()
        }
    return found


def swav_oracles() -> dict:
    """SwAV's head on stored projections, with and without a queue."""
    found = {}
    for path in cases("swav_loss"):
        case = np.load(path)
        assign = case["crops_for_assign"].tolist()
        config = SwavConfig(
            backbone="test_resnet",
            projector_dims=[case["z"].shape[2]],
            num_prototypes=len(case["prototypes"]),
            temperature=case["temperature"].item(),
            epsilon=case["epsilon"].item(),
            sinkhorn_iterations=case["iterations"].item(),
            crops_for_assign=assign,
            queue_length=case["queue_before"].shape[1] if case["has_queue"] else 0,
            queue_start_epoch=0,
        )
        model = SwavForPreTraining(config).double().train()
        with torch.no_grad():
            model.prototypes.weight.copy_(torch.tensor(case["prototypes"]))
            if case["has_queue"]:
                model.queue.copy_(torch.tensor(case["queue_before"]))
        model.before_step(0, 10, 1)
        raw = share(torch.tensor(case["z"]).double(), 1).clone().requires_grad_()
        z = F.normalize(raw, dim=2)
        scores = model.prototypes(z)
        codes = model._assign(scores.detach(), z.detach(), len(z))
        loss = swav_loss(scores, codes, assign, config.temperature)
        loss.backward()
        found[path.stem] = {
            "loss": loss.detach(),
            "codes": codes,
            "grad_z": raw.grad,
            "grad_prototypes": mean_over_ranks(model.prototypes.weight.grad),
        }
        if case["has_queue"]:
            found[path.stem]["queue_after"] = model.queue
    return found


QUEUE_STEPS, QUEUE_LENGTH = 6, 24


def queue_steps() -> list[dict]:
    """SwAV steps under DDP, without BatchNorm; the queue holds three batches and an unusable remainder."""
    torch.manual_seed(0)
    config = SwavConfig(
        backbone="test_vit",
        backbone_args={"img_size": 32},
        projector_dims=[16, 8],
        projector_batch_norm=False,
        num_prototypes=12,
        queue_length=QUEUE_LENGTH + 3,
        queue_start_epoch=0,
        freeze_prototypes_steps=0,
    )
    model = SwavForPreTraining(config).double().train()
    network = DistributedDataParallel(model, broadcast_buffers=False) if dist.is_initialized() else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    steps = []
    for step in range(QUEUE_STEPS):
        model.before_step(step, QUEUE_STEPS, 1)
        record = {"prototypes": model.prototypes.weight.detach().clone()}
        output = network(share(drifting(8, 2, 3, 32, 32, seed=step)))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        record |= {"loss": output.loss.detach(), "queue": model.queue.clone()}
        record |= {name: output[name].detach() for name in ("embeddings", "logits", "codes")}
        steps.append(record)
    return steps


NORMS = {
    "BatchNorm1d": (lambda: nn.BatchNorm1d(6), (16, 6)),
    "BatchNorm1d_without_scale": (lambda: nn.BatchNorm1d(6, affine=False), (16, 6)),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(6, eps=1e-3, momentum=0.3), (16, 6, 3, 5)),
    "BatchNormAct2d": (lambda: timm.layers.BatchNormAct2d(6), (16, 6, 3, 5)),
}


def batch_norms() -> dict:
    """Two training steps, then evaluation."""
    found = {}
    for name, (build, shape) in NORMS.items():
        norm = nn.Sequential(build())
        for parameter, values in zip(norm.parameters(), ([1, -1, 2, 0.5, 1, 3], [0, 1, -1, 0.5, 2, 0]), strict=False):
            parameter.data.copy_(torch.tensor(values))
        if dist.is_initialized():
            norm = synchronize_batchnorm(norm, torch.device("cpu"))
        for step in range(2):
            x = share(drifting(*shape).float() * (step + 1)).clone().requires_grad_()
            out = norm(x)
            (out.square() * share(unit(*shape).float())).mean().backward()
        found[name] = {"out": out.detach(), "grad": x.grad, "eval": norm.eval()(x).detach()}
        found[name]["same"] = {f"grad of {n}": mean_over_ranks(p.grad) for n, p in norm.named_parameters()}
        found[name]["same"] |= dict(norm.named_buffers())
    return found


QUEUE = {"swav": {"num_prototypes": 20, "queue_length": 32, "queue_start_epoch": 0}}


def build(method: str):
    config, model = METHODS[method]
    return model(config(**fields(method, zero_init_residual=False, **QUEUE.get(method, {}))))


def whole_models() -> dict:
    """One step of every method under DDP, with synchronized BatchNorm, in float64."""
    found = {}
    for method in IMAGE_METHODS:
        torch.manual_seed(0)
        model = build(method).double().train()
        images = {"pixel_values": share(drifting(16, 2, 3, 32, 32))}
        if method == "swav":
            images["local_pixel_values"] = share(drifting(16, 2, 3, 16, 16))
            model.queue.copy_(unit(*model.queue.shape))
        network = model
        if dist.is_initialized():
            model = synchronize_batchnorm(model, torch.device("cpu"))
            network = DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)
        model.before_step(0, 10, 1)
        output = network(**images)
        output.loss.backward()
        found[method] = {
            "loss": output.loss.detach(),
            "embeddings": output.embeddings.detach(),
            "grads": {name: p.grad for name, p in model.named_parameters() if p.grad is not None},
            "buffers": dict(model.named_buffers()),
        }
    return found


PARTS = (losses, barlow_twins_oracles, sinkhorn_oracles, swav_oracles, queue_steps, batch_norms)


def compute() -> dict:
    return {part.__name__: part() for part in PARTS}


# ---------------------------------------------------------------------------------------------- assertions


@pytest.fixture(scope="module")
def one() -> dict:
    """Results of one process with the global batch."""
    return compute()


@pytest.fixture(scope="module", params=WORLDS, ids=lambda world: f"processes{world}")
def ranks(request, tmp_path_factory) -> list[dict]:
    return run_on_ranks(compute, request.param, tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def one_model() -> dict:
    return whole_models()


@pytest.fixture(scope="module")
def two_models(tmp_path_factory) -> list[dict]:
    return run_on_ranks(whole_models, 2, tmp_path_factory.mktemp("models"))


def stem(path) -> str:
    return path.stem


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_and_its_gradient_are_those_of_one_process(name, ranks, one):
    for rank in ranks:
        assert_close(rank["losses"][name]["loss"], one["losses"][name]["loss"], DOUBLE)
        assert_close(rank["losses"][name]["grad_weight"], one["losses"][name]["grad_weight"], DOUBLE)


@pytest.mark.parametrize("path", cases("barlow_twins_ranks"), ids=stem)
def test_barlow_twins_gradient_is_exact_and_not_the_published_share_of_it(path, ranks):
    case, world = np.load(path), len(ranks)
    published = case["published_ddp_grad_weight_by_world"][case["worlds"].tolist().index(world)]
    for rank in ranks:
        ours = rank["barlow_twins_oracles"][path.stem]
        assert_close(ours["loss"], case["loss"], ORACLE)
        assert_close(ours["grad_weight"], case["grad_weight"], ORACLE)
        assert_close(ours["grad_weight"] / world, published, ORACLE)
        assert world == 1 or np.abs(ours["grad_weight"].numpy() - published).max() > 0.4 * np.abs(published).max()


@pytest.mark.parametrize("view", ["z_a", "z_b"])
@pytest.mark.parametrize("path", cases("barlow_twins_ranks"), ids=stem)
def test_barlow_twins_standardizes_by_mean_and_variance_of_the_global_batch(path, view, ranks):
    z = np.load(path)[view].astype(np.float64)
    for rank in ranks:
        mean, var = rank["barlow_twins_oracles"][path.stem][view]
        assert_close(mean, z.mean(0), ORACLE)
        assert_close(var, z.var(0), ORACLE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("path", cases("swav_sinkhorn"), ids=stem)
def test_codes_are_those_of_the_global_batch_also_where_exponentials_overflow(path, dtype, ranks):
    case = np.load(path)
    codes = torch.cat([rank["sinkhorn_oracles"][path.stem][dtype] for rank in ranks])
    bound = ORACLE if dtype == "float64" else 1e-5
    assert_close(codes, case["codes"], bound)
    if "codes_by_world" in case.files:
        assert_close(codes, case["codes_by_world"][case["worlds"].tolist().index(len(ranks))], bound)


@pytest.mark.parametrize("path", cases("swav_loss"), ids=stem)
def test_swav_with_and_without_queue_is_the_published_one_on_the_global_batch(path, ranks):
    case = np.load(path)
    ours = [rank["swav_oracles"][path.stem] for rank in ranks]
    assert_close(torch.cat([rank["codes"] for rank in ours], 1), case["codes"], ORACLE)
    assert_close(torch.cat([rank["grad_z"] for rank in ours], 1) / len(ranks), case["grad_z"], ORACLE)
    for rank in ours:
        assert_close(rank["loss"], case["loss"], ORACLE)
        assert_close(rank["grad_prototypes"], case["grad_prototypes"], ORACLE)
        if case["has_queue"]:
            assert_close(rank["queue_after"], case["queue_after"], ORACLE)


def whole_batch(ranks: list[dict], step: int, name: str) -> torch.Tensor:
    return torch.cat([rank["queue_steps"][step][name] for rank in ranks])


def plain_codes(scores: torch.Tensor, epsilon: float = 0.05, iterations: int = 3) -> torch.Tensor:
    """Sinkhorn as in the paper, on one process."""
    q = (scores / epsilon).exp().T  # (K, B)
    for _ in range(iterations):
        q = q / q.sum(1, keepdim=True) / q.shape[0]
        q = q / q.sum(0, keepdim=True) / q.shape[1]
    return q.T * q.shape[1]


def test_queue_holds_the_newest_global_batches_in_global_order_on_every_rank(ranks):
    for step in range(QUEUE_STEPS):
        newest_first = [whole_batch(ranks, s, "embeddings") for s in range(step, -1, -1)]
        expected = torch.zeros(2, QUEUE_LENGTH + 3, 8, dtype=torch.float64)
        rows = torch.cat(newest_first)[:QUEUE_LENGTH].transpose(0, 1)
        expected[:, : rows.shape[1]] = rows
        for rank in ranks:
            assert torch.equal(rank["queue_steps"][step]["queue"], expected)


def test_queue_is_used_when_it_is_full_and_before_the_batch_is_pushed(ranks):
    for step in range(QUEUE_STEPS):
        logits, codes = whole_batch(ranks, step, "logits"), whole_batch(ranks, step, "codes")
        for crop in range(2):
            alone = plain_codes(logits[:, crop])
            if step < QUEUE_LENGTH // 8:
                expected = alone
            else:
                before = ranks[0]["queue_steps"][step - 1]["queue"][crop, :QUEUE_LENGTH]
                past = before @ ranks[0]["queue_steps"][step]["prototypes"].T
                expected = plain_codes(torch.cat([past, logits[:, crop]]))[-8:]
                assert (expected - alone).abs().max() > 1e-3
            assert_close(codes[:, crop], expected, DOUBLE)


def test_training_with_a_queue_stays_on_the_course_of_one_process(ranks, one):
    for step, expected in enumerate(one["queue_steps"]):
        for name in ("embeddings", "logits", "codes"):
            assert_close(whole_batch(ranks, step, name), expected[name], DOUBLE)
        for rank in ranks:
            for name in ("loss", "queue", "prototypes"):
                assert_close(rank["queue_steps"][step][name], expected[name], DOUBLE)


@pytest.mark.parametrize("name", NORMS)
def test_synchronized_batchnorm_on_cpus_is_batchnorm_over_the_whole_batch(name, ranks, one):
    ours, expected = [rank["batch_norms"][name] for rank in ranks], one["batch_norms"][name]
    assert_close(torch.cat([rank["out"] for rank in ours]), expected["out"], 2e-6)
    assert_close(torch.cat([rank["eval"] for rank in ours]), expected["eval"], 2e-6)
    assert_close(torch.cat([rank["grad"] for rank in ours]) / len(ranks), expected["grad"], 2e-6)
    for rank in ours:
        assert rank["same"].keys() == expected["same"].keys()
        for key in expected["same"]:
            assert_close(rank["same"][key], expected["same"][key], 2e-6)


def assert_all_close(ours: dict, expected: dict, bound: float, floor: float) -> None:
    """Compare differences relative to the largest value of each tensor, or to `floor` if that is larger."""
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        error = (ours[name] - tensor).abs().max() / tensor.abs().max().double().clamp(min=floor)
        assert error < bound, name


@pytest.mark.parametrize("method", IMAGE_METHODS)
def test_loss_of_a_whole_model_under_ddp_is_that_of_one_process(method, two_models, one_model):
    for rank in two_models:
        assert_close(rank[method]["loss"], one_model[method]["loss"], DOUBLE)
    embeddings = torch.cat([rank[method]["embeddings"] for rank in two_models])
    assert_close(embeddings, one_model[method]["embeddings"], DOUBLE)


@pytest.mark.parametrize("method", IMAGE_METHODS)
def test_every_gradient_of_a_whole_model_under_ddp_is_that_of_one_process(method, two_models, one_model):
    """The floor is for biases before a BatchNorm, whose gradients are zero up to rounding."""
    expected = one_model[method]["grads"]
    largest = max(grad.abs().max().item() for grad in expected.values())
    for rank in two_models:
        assert_all_close(rank[method]["grads"], expected, 1e-10, floor=1e-3 * largest)


@pytest.mark.parametrize("method", IMAGE_METHODS)
def test_buffers_of_a_whole_model_are_the_same_on_every_rank_and_those_of_one_process(method, two_models, one_model):
    first, second = (rank[method]["buffers"] for rank in two_models)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert_all_close(first, one_model[method]["buffers"], 1e-10, floor=1e-2)


def test_barlow_twins_remembers_the_statistics_of_the_global_batch_view_by_view(two_models):
    norm = nn.BatchNorm1d(16, affine=False).double()
    for view in torch.cat([rank["barlow_twins"]["embeddings"] for rank in two_models]).unbind(1):
        norm(view)
    for rank in two_models:
        ours = {n.removeprefix("bn."): b for n, b in rank["barlow_twins"]["buffers"].items() if n.startswith("bn.")}
        assert_all_close(ours, dict(norm.named_buffers()), 1e-10, floor=1e-2)
