# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""BYOL (https://huggingface.co/papers/2006.07733): predict the projections of a moving average of the network.

Deviation from the released code: the target starts as a copy of the online network (as in the paper's pseudo-code),
not from another random seed; its authors saw no difference.
"""

import math

import torch
from torch import nn
from transformers import initialization as init
from transformers.utils.generic import can_return_tuple

from .configuration_byol import ByolConfig
from .distributed_ssl import all_reduce_mean, at_least_float32, full_precision
from .modeling_ssl import (
    MLP,
    SSLForImageClassification,
    SSLForPreTrainingOutput,
    SSLModel,
    SSLPreTrainedModel,
    two_views,
)


def byol_loss(p1: torch.Tensor, p2: torch.Tensor, z1: torch.Tensor, z2: torch.Tensor) -> torch.Tensor:
    """Mean over the global batch of `|p1 - z2|^2 + |p2 - z1|^2` on unit vectors (eq. 2, symmetrized): 0..8.

    Args:
        p1, p2: predictions (B, D) of the online network for both views.
        z1, z2: projections (B, D) of the target network; no gradient flows through them.
    """
    with full_precision(p1):
        p1, p2, z1, z2 = (_unit(at_least_float32(x)) for x in (p1, p2, z1.detach(), z2.detach()))
        return all_reduce_mean(((p1 - z2).square().sum(1) + (p2 - z1).square().sum(1)).mean())


def _unit(x: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.square().sum(1, keepdim=True).clamp(min=1e-12))


def tau_at(step: int, num_steps: int, base: float) -> float:
    """Momentum of the target network at a step: cosine from `base` to 1 (section 3.1)."""
    return 1 - (1 - base) * (math.cos(math.pi * step / num_steps) + 1) / 2


def _init_as_haiku(module: nn.Module) -> None:
    """Truncated normal, std 1/sqrt(fan_in), cut at two standard deviations; bias 0."""
    std = 1 / math.sqrt(module.weight[0].numel())
    init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
    if module.bias is not None:
        init.zeros_(module.bias)


class ByolModel(SSLModel):
    """Convolutional networks with BatchNorm are initialized as in the released code (Haiku's default)."""

    config: ByolConfig
    _keys_to_ignore_on_load_unexpected = [r"^projector\.", r"^predictor\.", r"^target_", r"^classifier\."]

    def _init_convolution(self, module: nn.Conv2d) -> None:
        if self.has_batch_norm:
            _init_as_haiku(module)
        else:
            super()._init_convolution(module)


class ByolForPreTraining(SSLPreTrainedModel):
    """Online encoder, projector and predictor; target encoder and projector, updated by a moving average."""

    title = "BYOL"
    paper = "https://huggingface.co/papers/2006.07733"
    citation = "grill2020byol"
    views = "byol"
    collapse = "The loss falls to 0 within a few steps, and the embeddings of all images become equal."

    config: ByolConfig

    def __init__(self, config: ByolConfig):
        super().__init__(config)
        self.encoder = ByolModel(config)
        width = self.encoder.num_features
        biases = {"hidden_bias": config.hidden_bias, "output_bias": config.output_bias}
        self.projector = MLP(width, (config.projector_hidden, config.projector_dim), **biases)
        self.predictor = MLP(config.projector_dim, (config.predictor_hidden, config.projector_dim), **biases)
        self.target_encoder = ByolModel(config)
        self.target_projector = MLP(width, (config.projector_hidden, config.projector_dim), **biases)
        self._tau = config.tau_base
        self.post_init()

    @can_return_tuple
    def forward(self, pixel_values: torch.Tensor, **kwargs) -> SSLForPreTrainingOutput:
        """Two views (B, 2, C, H, W), one forward pass each in both networks; `embeddings` are the predictions."""
        views = two_views(pixel_values, "BYOL")
        features = [self.encoder(view).pooler_output for view in views]
        predictions = [self.predictor(self.projector(y)) for y in features]
        loss = None
        if len(views) == 2:
            with torch.no_grad():
                targets = [self.target_projector(self.target_encoder(view).pooler_output) for view in views]
            loss = byol_loss(*predictions, *targets)
        return SSLForPreTrainingOutput(
            loss=loss, embeddings=torch.stack(predictions, 1), features=torch.stack(features, 1).detach()
        )

    def after_step(self, step: int, num_steps: int, steps_per_epoch: int) -> None:
        """xi <- tau xi + (1 - tau) theta, with the updated theta and the tau of `step`."""
        cosine = self.config.tau_schedule == "cosine"
        self._tau = tau_at(step, num_steps, self.config.tau_base) if cosine else self.config.tau_base
        self.update_targets(self._tau)

    def metrics(self) -> dict[str, float]:
        return {"tau": self._tau}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            _init_as_haiku(module)
        else:
            super()._init_weights(module)


class ByolForImageClassification(SSLForImageClassification):
    config: ByolConfig
    model_class = ByolModel
    _keys_to_ignore_on_load_unexpected = [r"^projector\.", r"^predictor\.", r"^target_"]
