# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Barlow Twins (https://huggingface.co/papers/2103.03230): two views, one cross-correlation matrix, driven to
identity.

Deviation from the released code: the gradient over several processes is that of the global batch; the released one is
1/W of it, because its all-reduce is outside autograd.
"""

import torch
from torch import nn
from transformers.utils.generic import can_return_tuple

from .configuration_barlow_twins import BarlowTwinsConfig
from .distributed_ssl import all_reduce_sum, at_least_float32, full_precision, world_size
from .modeling_ssl import (
    MLP,
    SSLForImageClassification,
    SSLForPreTrainingOutput,
    SSLModel,
    SSLPreTrainedModel,
    two_views,
)


def barlow_twins_loss(
    z_a: torch.Tensor, z_b: torch.Tensor, lambd: float = 0.0051, eps: float = 1e-5, center: bool = True
) -> torch.Tensor:
    """sum_i (1 - C_ii)^2 + lambd sum_{i != j} C_ij^2 over the global batch (eq. 1).

    C is the cross-correlation of features, each standardised by its mean and biased variance (plus `eps`) over the
    global batch. `center=False` takes eq. 2 literally instead: an un-centred cosine, not a correlation.

    Args:
        z_a, z_b: projections (B, D) of the two views on this process.
    """
    return _loss_and_statistics(z_a, z_b, lambd, eps, center)[0]


def _loss_and_statistics(z_a, z_b, lambd, eps, center):
    with full_precision(z_a):
        z_a, z_b = at_least_float32(z_a), at_least_float32(z_b)
        a, *stats_a = _standardize(z_a, eps, center)  # (B, D)
        b, *stats_b = _standardize(z_b, eps, center)
        c = all_reduce_sum(a.T @ b) / (len(z_a) * world_size())  # (D, D)
        diagonal = c.diagonal()
        off_diagonal = c.square().sum() - diagonal.square().sum()
        loss = (diagonal - 1).square().sum() + lambd * off_diagonal
    return loss, stats_a, stats_b


def _standardize(z: torch.Tensor, eps: float, center: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Standardised z, and the mean and biased variance over the global batch."""
    count = len(z) * world_size()
    mean = all_reduce_sum(z.sum(0)) / count
    centred = z - mean
    var = all_reduce_sum(centred.square().sum(0)) / count
    if center:
        return centred * torch.rsqrt(var + eps), mean, var
    mean_square = all_reduce_sum(z.square().sum(0)) / count
    return z * torch.rsqrt(mean_square.clamp(min=1e-12)), mean, var


class BarlowTwinsModel(SSLModel):
    config: BarlowTwinsConfig
    _keys_to_ignore_on_load_unexpected = [r"^projector\.", r"^bn\.", r"^classifier\."]


class BarlowTwinsForPreTraining(SSLPreTrainedModel):
    """Encoder, projector, and the affine-free BatchNorm of the loss, whose running statistics are kept as released."""

    config: BarlowTwinsConfig

    def __init__(self, config: BarlowTwinsConfig):
        super().__init__(config)
        self.encoder = BarlowTwinsModel(config)
        self.projector = MLP(self.encoder.num_features, config.projector_dims)
        self.bn = nn.BatchNorm1d(config.projector_dims[-1], affine=False)
        self.post_init()

    @can_return_tuple
    def forward(self, pixel_values: torch.Tensor, **kwargs) -> SSLForPreTrainingOutput:
        """Two views (B, 2, C, H, W), one forward pass each, so that each has its own BatchNorm batch."""
        features, embeddings = [], []
        for view in two_views(pixel_values, "Barlow Twins"):
            features.append(self.encoder(view).pooler_output)
            embeddings.append(self.projector(features[-1]))
        loss = None
        if len(embeddings) == 2:
            c = self.config
            loss, *statistics = _loss_and_statistics(*embeddings, c.lambd, c.eps, c.center)
            if self.training:
                for mean, var in statistics:
                    self._remember(mean, var, len(pixel_values) * world_size())
        return SSLForPreTrainingOutput(
            loss=loss, embeddings=torch.stack(embeddings, 1), features=torch.stack(features, 1).detach()
        )

    @torch.no_grad()
    def _remember(self, mean: torch.Tensor, var: torch.Tensor, count: int) -> None:
        """Running statistics as torch's BatchNorm keeps them: momentum 0.1, unbiased variance."""
        self.bn.running_mean.lerp_(mean.to(self.bn.running_mean.dtype), self.bn.momentum)
        self.bn.running_var.lerp_((var * count / max(count - 1, 1)).to(self.bn.running_var.dtype), self.bn.momentum)
        self.bn.num_batches_tracked.add_(1)


class BarlowTwinsForImageClassification(SSLForImageClassification):
    config: BarlowTwinsConfig
    model_class = BarlowTwinsModel
    _keys_to_ignore_on_load_unexpected = [r"^projector\.", r"^bn\."]
