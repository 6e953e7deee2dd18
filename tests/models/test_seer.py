# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""SEER: networks of the published sizes, Sinkhorn in low precision, and timm's weights."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from hf_ssl.models import (
    ByolForPreTraining,
    SwavConfig,
    SwavForImageClassification,
    SwavForPreTraining,
    SwavModel,
    sinkhorn,
)


# Millions of parameters, stage widths and depths (https://huggingface.co/papers/2202.08360).
NETWORKS = {
    "regnety_080": (37.16, (168, 448, 896, 2016), (2, 4, 10, 1)),
    "regnety_160": (80.57, (224, 448, 1232, 3024), (2, 4, 11, 1)),
    "regnety_320": (141.33, (232, 696, 1392, 3712), (2, 5, 12, 1)),
    "regnety_640": (276.46, (328, 984, 1968, 4920), (2, 5, 12, 1)),
    "regnety_1280": (637.42, (528, 1056, 2904, 7392), (2, 7, 17, 1)),
    "regnety_2560": (1272.16, (746, 1492, 4103, 10444), (2, 7, 17, 1)),
    "regnety_10b": (9323.93, (2020, 4040, 11110, 28280), (2, 7, 17, 1)),
}
TINY = {"depth": 6, "w0": 16, "wa": 16.0, "wm": 2.0, "group_size": 8}


def millions(module) -> float:
    return round(sum(parameter.numel() for parameter in module.parameters()) / 1e6, 2)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_networks_have_the_published_sizes(name):
    with torch.device("meta"):
        model = SwavForPreTraining(SwavConfig.seer(name))
    parameters, widths, depths = NETWORKS[name]
    stages = [stage for name, stage in model.encoder.backbone.named_children() if name in ("s1", "s2", "s3", "s4")]
    assert millions(model.encoder) == parameters
    assert tuple(len(list(stage.children())) for stage in stages) == depths
    assert tuple(stage.b1.conv3.conv.out_channels for stage in stages) == widths
    small = name in ("regnety_080", "regnety_160", "regnety_320")
    hidden = 4096 if small else 8192
    assert [tuple(layer.weight.shape) for layer in model.projector if isinstance(layer, torch.nn.Linear)] == [
        (hidden, widths[-1]),
        (hidden, hidden),
        (256, hidden),
    ]
    assert any(isinstance(layer, torch.nn.BatchNorm1d) for layer in model.projector) == small
    assert model.prototypes.weight.shape == (16000, 256)
    with_heads = {"regnety_2560": 1.431, "regnety_10b": 9.629}.get(name)
    if with_heads:
        assert round(millions(model) / 1e3, 3) == with_heads


def test_the_configuration_is_the_published_one_and_can_be_changed():
    config = SwavConfig.seer("regnety_10b")
    assert (config.sinkhorn_iterations, config.epsilon, config.temperature, config.queue_length) == (10, 0.03, 0.1, 0)
    assert SwavConfig.seer("regnety_2560").epsilon == 0.05
    assert SwavConfig.seer("regnety_002", num_prototypes=50).num_prototypes == 50


def test_grouped_convolutions_start_at_fan_out_of_all_channels():
    torch.manual_seed(0)
    model = SwavModel(SwavConfig.seer("regnety_002"))
    convolution = model.backbone.s4.b2.conv2.conv
    std = convolution.weight.std().item()
    assert std == pytest.approx((2 / (9 * convolution.out_channels)) ** 0.5, rel=0.03)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sinkhorn_at_epsilon_003_is_stable_in_low_precision(dtype):
    torch.manual_seed(0)
    scores = torch.nn.functional.normalize(torch.randn(64, 256), dim=1) @ torch.nn.functional.normalize(
        torch.randn(256, 100), dim=0
    )
    scores[0, 0], scores[1, 1], scores[2] = 1.0, -1.0, 1.0  # exp(1 / 0.03) is 3e14, infinite in float16
    low = scores.to(dtype)
    codes = sinkhorn(low, epsilon=0.03, num_iters=10)
    exact = sinkhorn(low.double(), epsilon=0.03, num_iters=10)
    assert codes.dtype == torch.float32
    assert torch.allclose(codes.double(), exact, atol=1e-5)
    assert torch.allclose(codes.sum(1), torch.ones(64), atol=1e-5)


def timm_folder(folder, name="regnety_002", **kwargs):
    """A model with random weights in timm's format, as written by `timm.models.save_for_hf`."""
    torch.manual_seed(1)
    model = timm.create_model(name, pretrained=False, num_classes=0, **kwargs).eval()
    timm.models.save_for_hf(model, folder, model_args=kwargs or None)
    return model


def test_timms_weights_become_the_encoder_of_a_seer(tmp_path):
    source = timm_folder(tmp_path, **TINY)
    config = SwavConfig.seer("regnety_002", backbone_args=TINY, projector_dims=(32, 32, 16), num_prototypes=20)
    images = torch.randn(2, 3, 64, 64)
    model = SwavForPreTraining.from_timm(f"local-dir:{tmp_path}", config).eval()
    assert torch.equal(model.encoder(images).pooler_output, source(images))
    assert torch.allclose(model.prototypes.weight.norm(dim=1), torch.ones(20))
    with torch.no_grad():
        again = SwavModel.from_timm(f"local-dir:{tmp_path}").eval()
    assert TINY.items() <= again.config.backbone_args.items()
    assert again.config.image_mean == source.pretrained_cfg["mean"]
    assert torch.equal(again(images).pooler_output, source(images))
    byol = ByolForPreTraining.from_timm(f"local-dir:{tmp_path}", projector_hidden=16, projector_dim=8)
    online, target = byol.encoder.state_dict(), byol.target_encoder.state_dict()
    assert all(torch.equal(online[name], target[name]) for name in online if "running" not in name)


def test_what_does_not_fit_is_named(tmp_path):
    timm_folder(tmp_path, **TINY)
    with pytest.raises(ValueError, match=r"do not fit regnety_002 as configured .*: s\d\.b"):
        SwavModel.from_timm(f"local-dir:{tmp_path}", SwavConfig.seer("regnety_002"))
    incomplete = dict(timm.create_model("regnety_002", num_classes=0, **TINY).state_dict())
    incomplete.pop("stem.conv.weight")
    save_file(incomplete, tmp_path / "model.safetensors")
    with pytest.raises(RuntimeError, match=r"stem\.conv\.weight"):
        SwavModel.from_timm(f"local-dir:{tmp_path}")


def test_pretrained_weights_can_be_fine_tuned(tmp_path):
    timm_folder(tmp_path, **TINY)
    torch.manual_seed(0)
    model = SwavForImageClassification.from_timm(f"local-dir:{tmp_path}", num_labels=4).train()
    images, labels = torch.randn(16, 3, 32, 32), torch.arange(16) % 4
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(12):
        loss = model(images, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
