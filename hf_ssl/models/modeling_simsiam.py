# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""SimSiam (https://huggingface.co/papers/2011.10566): one network, a predictor, and a stop-gradient.

There is no second network and nothing is copied; `target_update="epoch"` adds both and is not the published method.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers.utils.generic import can_return_tuple

from .configuration_simsiam import SimSiamConfig
from .distributed_ssl import all_reduce_mean, at_least_float32, full_precision
from .modeling_ssl import (
    MLP,
    SSLForImageClassification,
    SSLForPreTrainingOutput,
    SSLModel,
    SSLPreTrainedModel,
    two_views,
)


def simsiam_loss(p1: torch.Tensor, p2: torch.Tensor, z1: torch.Tensor, z2: torch.Tensor) -> torch.Tensor:
    """-(cos(p1, z2) + cos(p2, z1)) / 2, mean over the global batch (eq. 4): -1..1.

    Args:
        p1, p2: predictions (B, D) of both views.
        z1, z2: projections (B, D); no gradient flows through them.
    """
    with full_precision(p1):
        p1, p2, z1, z2 = (at_least_float32(x) for x in (p1, p2, z1.detach(), z2.detach()))
        similarity = F.cosine_similarity(p1, z2, dim=1).mean() + F.cosine_similarity(p2, z1, dim=1).mean()
        return all_reduce_mean(-similarity / 2)


class SimSiamProjector(MLP):
    """An MLP that ends in BatchNorm. If that is not affine, it cancels the last bias, which is then frozen."""

    def __init__(self, in_dim: int, config: SimSiamConfig):
        hidden = config.projector_hidden or in_dim
        super().__init__(
            in_dim,
            [hidden] * (config.projector_layers - 1) + [config.projector_dim],
            output_bias=not config.output_affine,
        )
        self.append(nn.BatchNorm1d(config.projector_dim, affine=config.output_affine))
        if not config.output_affine:
            self[-2].bias.requires_grad_(False)


class SimSiamModel(SSLModel):
    config: SimSiamConfig
    _keys_to_ignore_on_load_unexpected = [r"^projector\.", r"^predictor\.", r"^target_", r"^classifier\."]


class SimSiamForPreTraining(SSLPreTrainedModel):
    """Encoder, projector and predictor, shared by both views."""

    title = "SimSiam"
    paper = "https://huggingface.co/papers/2011.10566"
    citation = "chen2021simsiam"
    views = "simsiam"
    collapse = "The loss falls to -1 within a few steps, and the embeddings of all images become equal."

    config: SimSiamConfig

    def __init__(self, config: SimSiamConfig):
        super().__init__(config)
        self.encoder = SimSiamModel(config)
        self.projector = SimSiamProjector(self.encoder.num_features, config)
        self.predictor = MLP(config.projector_dim, (config.predictor_hidden, config.projector_dim), output_bias=True)
        self.has_target = config.target_update == "epoch"
        if self.has_target:
            self.target_encoder = SimSiamModel(config)
            self.target_projector = SimSiamProjector(self.encoder.num_features, config)
        self.post_init()

    @can_return_tuple
    def forward(self, pixel_values: torch.Tensor, **kwargs) -> SSLForPreTrainingOutput:
        """Two views (B, 2, C, H, W), one forward pass each; `embeddings` are the projections z."""
        views = two_views(pixel_values, "SimSiam")
        features = [self.encoder(view).pooler_output for view in views]
        projections = [self.projector(y) for y in features]
        loss = None
        if len(views) == 2:
            predictions = [self.predictor(z) for z in projections]
            targets = self._targets(views) if self.has_target else projections
            loss = simsiam_loss(*predictions, *targets)
        return SSLForPreTrainingOutput(
            loss=loss, embeddings=torch.stack(projections, 1), features=torch.stack(features, 1).detach()
        )

    @torch.no_grad()
    def _targets(self, views: list[torch.Tensor]) -> list[torch.Tensor]:
        return [self.target_projector(self.target_encoder(view).pooler_output) for view in views]

    def after_step(self, step: int, num_steps: int, steps_per_epoch: int) -> None:
        if self.has_target and (step + 1) % steps_per_epoch == 0:
            self.copy_to_targets()


class SimSiamForImageClassification(SSLForImageClassification):
    config: SimSiamConfig
    model_class = SimSiamModel
    _keys_to_ignore_on_load_unexpected = [r"^projector\.", r"^predictor\.", r"^target_"]
