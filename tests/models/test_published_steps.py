# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""After several optimizer steps, our models have the weights of the published training loops."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hf_ssl.models import ByolConfig, ByolForPreTraining, SimSiamConfig, SimSiamForPreTraining
from hf_ssl.models.modeling_byol import tau_at
from hf_ssl.models.modeling_simsiam import SimSiamProjector
from hf_ssl.models.modeling_ssl import MLP, BaseModelOutputWithPooling
from hf_ssl.optim import build_optimizer, set_learning_rates
from hf_ssl.recipe import OptimConfig


FIXTURES = Path(__file__).parents[1] / "fixtures"


class LinearEncoder(nn.Module):
    """Replaces the backbone, because the original ran without one."""

    def __init__(self, dim: int | None = None):
        super().__init__()
        self.linear = nn.Linear(dim, dim) if dim else nn.Identity()

    def forward(self, pixel_values):
        return BaseModelOutputWithPooling(pooler_output=self.linear(pixel_values))


def assert_close(ours: torch.Tensor, theirs: np.ndarray, bound: float = 2e-5, name: str = "") -> None:
    scale = max(np.abs(theirs).max(), 1e-3)
    assert np.abs(ours.detach().numpy() - theirs).max() / scale < bound, name


def views_of(x: np.ndarray, dtype=torch.float32) -> torch.Tensor:
    """(2, N, d) -> (N, 2, d); the models split dimension 1."""
    return torch.tensor(x, dtype=dtype).transpose(0, 1)


def byol_like_the_oracle(case) -> ByolForPreTraining:
    hidden, dim = case["online0/projector/linear|w"].shape[1], case["online0/projector/linear_1|w"].shape[1]
    config = ByolConfig(
        backbone="test_resnet",
        projector_hidden=hidden,
        projector_dim=dim,
        predictor_hidden=hidden,
        tau_base=case["base_target_ema"].item(),
    )
    model = ByolForPreTraining(config)
    width = case["views"].shape[-1]
    model.encoder, model.target_encoder = LinearEncoder(width), LinearEncoder(width)
    model.projector, model.target_projector = (MLP(width, (hidden, dim), hidden_bias=True) for _ in range(2))
    return model.double().train()


def haiku_names(prefix: str, head: str) -> dict[str, str]:
    """Map from our tensor names to haiku's, for an encoder of one Linear and a head."""
    names = {f"{prefix}encoder.linear.weight": "encoder|w", f"{prefix}encoder.linear.bias": "encoder|b"}
    for module in (head, "predictor") if prefix == "" else (head,):
        names |= {
            f"{prefix}{module}.0.weight": f"{module}/linear|w",
            f"{prefix}{module}.0.bias": f"{module}/linear|b",
            f"{prefix}{module}.1.weight": f"{module}/batch_norm|scale",
            f"{prefix}{module}.1.bias": f"{module}/batch_norm|offset",
            f"{prefix}{module}.3.weight": f"{module}/linear_1|w",
        }
    return names


def test_byol_takes_the_published_steps_with_lars_and_the_moving_average():
    case = np.load(FIXTURES / "byol_steps_00.npz")
    model = byol_like_the_oracle(case)
    tensors = dict(model.named_parameters())
    named = {"online": haiku_names("", "projector"), "target": haiku_names("target_", "projector")}
    for side, names in named.items():
        for ours, theirs in names.items():
            stored = case[f"{side}0/{theirs}"]
            value = stored.T if theirs.endswith("|w") else stored.reshape(-1)
            tensors[ours].data.copy_(torch.tensor(np.ascontiguousarray(value)))
    model.freeze_targets()
    optim = OptimConfig(
        name="lars",
        lr=case["base_learning_rate"].item(),
        weight_decay=case["weight_decay"].item(),
        exclude_bias_and_norm=True,
        warmup_epochs=case["warmup_steps"].item(),
    )
    optimizer = build_optimizer(model, optim, case["batch_size"].item())
    total, first = case["total_steps"].item(), case["first_step"].item()
    for s, views in enumerate(case["views"]):
        set_learning_rates(optimizer, optim, first + s, total, 1)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(case["lrs"][s], rel=1e-6)
        loss = model(views_of(views, torch.float64)).loss
        assert loss.item() == pytest.approx(case["losses"][s], rel=1e-6)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.after_step(first + s, total, 1)
        assert model.metrics()["tau"] == pytest.approx(case["taus"][s], rel=1e-6)
        if s + 1 in (1, case["n_steps"].item()):
            for side, names in named.items():
                for ours, theirs in names.items():
                    stored = case[f"{side}{s + 1}/{theirs}"]
                    value = stored.T if theirs.endswith("|w") else stored.reshape(-1)
                    assert_close(tensors[ours], value, 2e-6, f"{ours} after step {s + 1}")


def test_byol_averages_by_the_tau_of_the_step():
    case = np.load(FIXTURES / "byol_ema_00.npz")
    config = ByolConfig(backbone="test_resnet", tau_base=case["base_target_ema"].item())
    model = ByolForPreTraining(config)
    shape = case["online_w"].shape
    for module, side in ((model.encoder, "online"), (model.target_encoder, "target")):
        module.backbone = nn.Linear(*shape)
        module.backbone.weight.data = torch.tensor(case[f"{side}_w"].T.copy())
        module.backbone.bias.data = torch.tensor(case[f"{side}_b"])
    for i, step in enumerate(case["step"].tolist()):
        model.after_step(step, case["total_steps"].item(), 1)
        assert_close(model.target_encoder.backbone.weight, case["target_w_after"][i].T, 2e-6)
        assert_close(model.target_encoder.backbone.bias, case["target_b_after"][i], 2e-6)


def test_tau_rises_from_its_base_to_one():
    assert tau_at(0, 100, 0.996) == pytest.approx(0.996)
    assert tau_at(50, 100, 0.996) == pytest.approx(0.998)
    assert tau_at(100, 100, 0.996) == pytest.approx(1.0)


@pytest.mark.parametrize("file", ["simsiam_heads_00.npz", "simsiam_heads_01.npz"])
def test_simsiam_takes_the_published_steps_with_sgd_and_epoch_schedule(file):
    case = np.load(FIXTURES / file)
    state = {key.removeprefix("state0/"): case[key] for key in case.files if key.startswith("state0/")}
    hidden, bottleneck = len(state["encoder.fc.0.weight"]), len(state["predictor.0.weight"])
    dim = len(state["encoder.fc.6.weight"])
    config = SimSiamConfig(
        backbone="test_resnet", projector_hidden=hidden, projector_dim=dim, predictor_hidden=bottleneck
    )
    model = SimSiamForPreTraining(config)
    model.encoder = LinearEncoder()
    model.projector = SimSiamProjector(case["x"].shape[-1], config)
    model.freeze_targets()

    def ours(name: str) -> str:
        return name.replace("encoder.fc.", "projector.")

    model.load_state_dict({ours(name): torch.tensor(value) for name, value in state.items()})
    model.eval()
    with torch.no_grad():
        z1 = model.projector(torch.tensor(case["x"][0, 0]))
        assert_close(z1, case["eval_z1"])
        assert_close(model.predictor(z1), case["eval_p1"])
    optim = OptimConfig(
        lr=case["lr"].item(),
        lr_per=None,
        weight_decay=case["weight_decay"].item(),
        momentum=case["momentum"].item(),
        schedule_by="epoch",
        fixed_predictor_lr=bool(case["fix_pred_lr"]),
    )
    optimizer = build_optimizer(model.train(), optim, 256)
    for step, x in enumerate(case["x"]):
        set_learning_rates(optimizer, optim, step, case["epochs"].item(), 1)
        output = model(views_of(x))
        assert output.loss.item() == pytest.approx(case["losses"][step], abs=2e-5)
        optimizer.zero_grad()
        output.loss.backward()
        if step == 0:
            assert_close(output.embeddings[:, 0], case["z1"])
            assert_close(output.embeddings[:, 1], case["z2"])
            for key in case.files:
                if key.startswith("grad/") and "fc.6.bias" not in key:
                    grad = dict(model.named_parameters())[ours(key.removeprefix("grad/"))].grad
                    assert_close(grad, case[key], 1e-4, key)
        optimizer.step()
        if step in (0, 2):
            after = model.state_dict()
            for key in case.files:
                if key.startswith(f"state{step + 1}/"):
                    name = key.split("/", 1)[1]
                    assert_close(after[ours(name)].float(), case[key], 1e-4, key)
    assert np.array_equal(model.projector[6].bias.detach().numpy(), state["encoder.fc.6.bias"])
