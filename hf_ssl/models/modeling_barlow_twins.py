# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Barlow Twins (https://huggingface.co/papers/2103.03230): drive the cross-correlation of two views to
identity.

Deviation from the released code: with several processes, the gradient is that of the global batch; the released code
has 1/W of it, because its all-reduce is outside autograd.
"""

import torch
from torch import nn
from transformers.utils.generic import can_return_tuple

from .configuration_barlow_twins import BarlowTwinsConfig
from .distributed_ssl import all_gather, all_reduce_mean, at_least_float32, full_precision, world_size
from .modeling_ssl import (
    MLP,
    SSLForImageClassification,
    SSLForPreTrainingOutput,
    SSLModel,
    SSLPreTrainedModel,
    two_views,
)


def barlow_twins_loss(
    z_a: torch.Tensor,
    z_b: torch.Tensor,
    lambd: float = 0.0051,
    eps: float = 1e-5,
    center: bool = True,
    explicit_matrix: bool = True,
) -> torch.Tensor:
    """sum_i (1 - C_ii)^2 + lambd sum_{i != j} C_ij^2 over the global batch (eq. 1, Algorithm 1).

    C is the cross-correlation of features, each standardized by its mean and biased variance (plus `eps`) over the
    global batch. `center=False` reads eq. 2 literally instead: an uncentered cosine, not a correlation.

    Args:
        z_a, z_b: projections (B, D) of the two views on this process.
        explicit_matrix: False computes the same loss without C, and faster, if the global batch is smaller than D.
    """
    with full_precision(z_a):
        z_a, z_b = (_standardize(at_least_float32(z), eps, center) for z in (z_a, z_b))  # (B, D) each
        if not explicit_matrix and len(z_a) * world_size() < z_a.shape[1]:
            diagonal, total = _sums_without_matrix(z_a, z_b)
        else:
            c = all_reduce_mean(z_a.T @ z_b / len(z_a))  # (D, D)
            diagonal, total = c.diagonal(), c.square().sum()  # (D,), ()
        off_diagonal = total - diagonal.square().sum()  # avoids a D x D mask
        return (diagonal - 1).square().sum() + lambd * off_diagonal


def _sums_without_matrix(z_a: torch.Tensor, z_b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Diagonal (D,) of C = A^T B / N and the sum of its squares, from N x N products instead of D x D ones:
    sum C^2 = tr(B^T A A^T B) / N^2 = <A A^T, B B^T> / N^2.
    """
    a, b = all_gather(z_a), all_gather(z_b)  # (N, D) of the global batch
    return (a * b).sum(0) / len(a), ((a @ a.T) * (b @ b.T)).sum() / len(a) ** 2


def _standardize(z: torch.Tensor, eps: float, center: bool) -> torch.Tensor:
    if center:
        z = z - all_reduce_mean(z.mean(0))  # (B, D), each column has mean 0 over the global batch
    mean_square = all_reduce_mean(z.square().mean(0))  # (D,), the variance when centered
    return z * torch.rsqrt(mean_square + eps if center else mean_square.clamp(min=1e-12))


@torch.no_grad()
def global_statistics(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and biased variance (D,) of features (B, D) over the global batch."""
    with full_precision(z):
        z = at_least_float32(z)
        mean = all_reduce_mean(z.mean(0))
        return mean, all_reduce_mean((z - mean).square().mean(0))


@torch.no_grad()
def update_running_statistics(norm: nn.BatchNorm1d, z: torch.Tensor) -> None:
    """Update running statistics as torch's BatchNorm does: momentum 0.1, unbiased variance.

    The loss does not use them. They are in our checkpoints because the released ones have them.
    """
    mean, var = global_statistics(z)
    count = len(z) * world_size()
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), norm.momentum)
    norm.running_var.lerp_((var * count / max(count - 1, 1)).to(norm.running_var.dtype), norm.momentum)
    norm.num_batches_tracked.add_(1)


class BarlowTwinsModel(SSLModel):
    config: BarlowTwinsConfig
    _keys_to_ignore_on_load_unexpected = [r"^projector\.", r"^bn\.", r"^classifier\."]


class BarlowTwinsForPreTraining(SSLPreTrainedModel):
    """Encoder, projector, and a non-affine BatchNorm that only keeps running statistics, as in the released code."""

    title = "Barlow Twins"
    paper = "https://huggingface.co/papers/2103.03230"
    citation = "zbontar2021barlow"
    views = "barlow_twins"
    collapse = "All entries of C vanish, and the loss stays near the width of the projections."

    config: BarlowTwinsConfig

    def __init__(self, config: BarlowTwinsConfig):
        super().__init__(config)
        self.encoder = BarlowTwinsModel(config)
        self.projector = MLP(self.encoder.num_features, config.projector_dims)
        self.bn = nn.BatchNorm1d(config.projector_dims[-1], affine=False)
        self.post_init()

    @can_return_tuple
    def forward(self, pixel_values: torch.Tensor, **kwargs) -> SSLForPreTrainingOutput:
        """Two views (B, 2, C, H, W), one forward pass each, so that each view has its own BatchNorm statistics."""
        features, embeddings = [], []
        for view in two_views(pixel_values, "Barlow Twins"):
            features.append(self.encoder(view).pooler_output)
            embeddings.append(self.projector(features[-1]))
        loss = None
        if len(embeddings) == 2:
            config = self.config
            settings = (config.lambd, config.eps, config.center, config.explicit_matrix)
            loss = barlow_twins_loss(*embeddings, *settings)
            if self.training:
                for z in embeddings:
                    update_running_statistics(self.bn, z)
        return SSLForPreTrainingOutput(
            loss=loss, embeddings=torch.stack(embeddings, 1), features=torch.stack(features, 1).detach()
        )

    def before_simulation(self) -> None:
        """`plan` runs fewer processes, so its batch size cannot tell whether the matrix is built; assume it is."""
        self.config.explicit_matrix = True


class BarlowTwinsForImageClassification(SSLForImageClassification):
    config: BarlowTwinsConfig
    model_class = BarlowTwinsModel
    _keys_to_ignore_on_load_unexpected = [r"^projector\.", r"^bn\."]
