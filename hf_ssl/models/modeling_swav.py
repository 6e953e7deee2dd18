# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""SwAV (https://huggingface.co/papers/2006.09882): predict one view's cluster assignment from the others.

Deviations from the released code: the queue holds features of the global batch and is the same on every process
(theirs is local to a process); Sinkhorn runs in the log domain, which gives the same codes and cannot overflow.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.utils.generic import can_return_tuple

from .configuration_swav import SwavConfig
from .distributed_ssl import (
    all_reduce_max,
    all_reduce_mean,
    all_reduce_sum,
    at_least_float32,
    full_precision,
    gather_batch,
    rank,
    world_size,
)
from .initialization_ssl import init_linear_as_torch
from .modeling_ssl import (
    MLP,
    SSLForImageClassification,
    SSLForPreTrainingOutput,
    SSLModel,
    SSLPreTrainedModel,
    split_views,
)


@torch.no_grad()
def sinkhorn(scores: torch.Tensor, epsilon: float = 0.05, num_iters: int = 3) -> torch.Tensor:
    """Soft assignment of the global batch to prototypes, each used about equally (section 3.1, eq. 3 to 5).

    Normalizes columns and rows of exp(scores / epsilon) in turn, in the log domain.

    Args:
        scores: (B, K) similarities of this process's samples to the prototypes.

    Returns:
        codes (B, K), float32 or float64; rows sum to 1.
    """
    with full_precision(scores):
        log_q = at_least_float32(scores) / epsilon  # (B, K)
        for _ in range(num_iters):
            log_q = log_q - _logsumexp_over_samples(log_q)  # each prototype gets equal weight in the global batch
            log_q = log_q - log_q.logsumexp(1, keepdim=True)  # weights of each sample sum to 1
        return log_q.exp()


def _logsumexp_over_samples(log_q: torch.Tensor) -> torch.Tensor:
    """(B, K) on every process -> (1, K) over the global batch."""
    highest = all_reduce_max(log_q.amax(0, keepdim=True))
    return all_reduce_sum((log_q - highest).exp().sum(0, keepdim=True)).log() + highest


def swav_loss(
    scores: torch.Tensor,
    codes: torch.Tensor,
    crops_for_assign: list[int] | tuple[int, ...] = (0, 1),
    temperature: float = 0.1,
) -> torch.Tensor:
    """Cross-entropy between the codes of a crop and the predictions of all other crops, averaged (eq. 2 and 6).

    Args:
        scores: (V, B, K) similarities of all crops to the prototypes.
        codes: (A, B, K) for the crops in `crops_for_assign`.
    """
    with full_precision(scores):
        log_p = (at_least_float32(scores) / temperature).log_softmax(-1)  # (V, B, K)
        losses = []
        for code, crop in zip(codes, crops_for_assign, strict=True):
            others = [v for v in range(len(scores)) if v != crop]
            losses.append(torch.stack([-(code * log_p[v]).sum(1).mean() for v in others]).mean())
        return all_reduce_mean(torch.stack(losses).mean())


@dataclass
class SwavForPreTrainingOutput(SSLForPreTrainingOutput):
    """Output of SwAV; `embeddings` and `logits` cover all crops, `features` only the global views.

    Args:
        logits (`torch.FloatTensor` of shape `(B, V, K)`): similarities to the prototypes, concatenated over prototype
            layers.
        codes (`torch.FloatTensor` of shape `(B, A, K)`, *optional*): assignments of `crops_for_assign`.
    """

    logits: torch.FloatTensor | None = None
    codes: torch.FloatTensor | None = None


class SwavModel(SSLModel):
    config: SwavConfig
    _keys_to_ignore_on_load_unexpected = [r"^projector\.", r"^prototypes\.", r"^queue$", r"^classifier\."]


class SeveralPrototypes(nn.ModuleList):
    """Several prototype layers: (..., D) -> (..., K), where K is their total."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return torch.cat([prototypes(z) for prototypes in self], -1)


class Queue:
    """Past features of one crop over the global batch, newest first, the same on every process.

    Args:
        features: (L, D) buffer of the model, changed in place. L is rounded down to whole global batches.
        batch_size: per process.
    """

    def __init__(self, features: torch.Tensor, batch_size: int):
        self.total = batch_size * world_size()
        length = len(features) // self.total * self.total
        if length == 0:
            raise ValueError(f"queue_length={len(features)} must hold at least one global batch of {self.total}.")
        self.features = features[:length]

    def is_full(self) -> bool:
        return bool(self.features[-1].any())

    def scores(self, prototypes: nn.Module) -> torch.Tensor:
        """(L / W, K) for this process's share, in full precision."""
        share = self.features.unflatten(0, (world_size(), -1))[rank()]
        with full_precision(share):
            return prototypes(share.to(next(prototypes.parameters()).dtype))

    def push(self, z: torch.Tensor) -> None:
        """Put (B, D) from every process at the front and drop the oldest batch."""
        newest = gather_batch(z).to(self.features.dtype)
        self.features.copy_(torch.cat([newest, self.features[: -self.total]]))


class SwavForPreTraining(SSLPreTrainedModel):
    """Encoder, projector, prototypes, and a queue of past features.

    The training loop must call the hooks: they normalize the prototypes before every step, freeze them for the first
    steps, and start the queue.
    """

    title = "SwAV"
    paper = "https://huggingface.co/papers/2006.09882"
    citation = "caron2020swav"
    views = "swav"
    collapse = "All images get the same code: loss and assignment_entropy stay at the logarithm of num_prototypes."

    config: SwavConfig
    _keys_to_ignore_on_load_missing = [r"^queue$"]

    def __init__(self, config: SwavConfig):
        super().__init__(config)
        self.encoder = SwavModel(config)
        self.projector = MLP(
            self.encoder.num_features,
            config.projector_dims,
            batch_norm=config.projector_batch_norm,
            hidden_bias=True,
            output_bias=True,
        )
        matrices = [
            nn.Linear(config.projector_dims[-1], count, bias=config.prototypes_bias)
            for count in config.prototype_counts
        ]
        self.prototypes = matrices[0] if isinstance(config.num_prototypes, int) else SeveralPrototypes(matrices)
        if config.queue_length:
            shape = (len(config.crops_for_assign), config.queue_length, config.projector_dims[-1])
            self.register_buffer("queue", torch.zeros(shape))
        self._queue_on = self._queue_full = False
        self._codes: torch.Tensor | None = None
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, local_pixel_values: torch.Tensor | None = None, **kwargs
    ) -> SwavForPreTrainingOutput:
        """Global views (B, V, C, H, W) and small crops (B, L, C, h, w).

        Crops of one size pass through the backbone together, and all crops through the projector together, so that
        they share BatchNorm statistics as in the released code.
        """
        views = split_views(pixel_values)
        size, num_global = len(views[0]), len(views)
        features = self._encode(pixel_values)  # (V*B, F)
        if local_pixel_values is not None:
            features = torch.cat([features, self._encode(local_pixel_values)])
        z = F.normalize(at_least_float32(self.projector(features)), dim=1)
        with full_precision(z):
            scores = self.prototypes(z).unflatten(0, (-1, size))  # (V+L, B, K)
        z = z.unflatten(0, (-1, size))  # (V+L, B, D)
        loss = codes = None
        if len(scores) > 1:
            codes = self._assign(scores.detach(), z.detach(), num_global)
            config, pairs = self.config, zip(self._of_each(scores), self._of_each(codes), strict=True)
            losses = [swav_loss(s, c, config.crops_for_assign, config.temperature) for s, c in pairs]
            loss = torch.stack(losses).mean()
            self._codes = codes
        return SwavForPreTrainingOutput(
            loss=loss,
            embeddings=z.transpose(0, 1),
            features=features[: num_global * size].unflatten(0, (-1, size)).transpose(0, 1).detach(),
            logits=scores.transpose(0, 1),
            codes=None if codes is None else codes.transpose(0, 1),
        )

    def _encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, V, C, H, W) -> (V*B, F), view by view; no copy if the storage is view-major."""
        if pixel_values.dim() == 5:
            pixel_values = pixel_values.transpose(0, 1).flatten(0, 1)
        return self.encoder(pixel_values).pooler_output

    @torch.no_grad()
    def _assign(self, scores: torch.Tensor, z: torch.Tensor, num_global: int) -> torch.Tensor:
        """Codes (A, B, K). Uses the queue only if it was full before this batch."""
        config, codes = self.config, []
        if max(config.crops_for_assign) >= num_global:
            raise ValueError(f"crops_for_assign={list(config.crops_for_assign)} needs more than {num_global} views.")
        for i, crop in enumerate(config.crops_for_assign):
            rows = scores[crop]  # (B, K)
            if self._queue_on and self.training:
                queue = Queue(self.queue[i], len(rows))
                self._queue_full = self._queue_full or queue.is_full()
                if self._queue_full:
                    rows = torch.cat([queue.scores(self.prototypes).to(rows.dtype), rows])
                queue.push(z[crop])
            parts = [sinkhorn(part, config.epsilon, config.sinkhorn_iterations) for part in self._of_each(rows)]
            codes.append(torch.cat(parts, 1)[-scores.shape[1] :])  # drop the queue's codes
        return torch.stack(codes)

    def _of_each(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Split the last axis by prototype layer."""
        return x.split(self.config.prototype_counts, -1)

    @property
    def _matrices(self) -> list[nn.Linear]:
        return [self.prototypes] if isinstance(self.config.num_prototypes, int) else list(self.prototypes)

    @torch.no_grad()
    def before_step(self, step: int, num_steps: int, steps_per_epoch: int) -> None:
        for prototypes in self._matrices:
            prototypes.weight.copy_(F.normalize(prototypes.weight, dim=1))
        self._queue_on = self.config.queue_length > 0 and step >= self.config.queue_start_epoch * steps_per_epoch

    def before_optimizer_step(self, step: int, num_steps: int, steps_per_epoch: int) -> None:
        if step < self.config.freeze_prototypes_steps:
            self.prototypes.zero_grad(set_to_none=True)

    def metrics(self) -> dict[str, float]:
        """Over this process's last batch: code entropy in nats, and the share of prototypes that win a sample."""
        if self._codes is None:
            return {}
        parts = self._of_each(self._codes.flatten(0, 1))  # (A*B, K) for each layer
        entropies = [-(codes * codes.clamp(min=1e-12).log()).sum(1).mean() for codes in parts]
        used = sum(codes.argmax(1).unique().numel() for codes in parts)
        return {
            "assignment_entropy": torch.stack(entropies).mean().item(),
            "prototypes_used": used / sum(self.config.prototype_counts),
        }

    def export_parts(self) -> tuple[SwavConfig, dict[str, torch.Tensor]]:
        return self.config, {name: tensor for name, tensor in self.state_dict().items() if name != "queue"}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if any(module is prototypes for prototypes in self._matrices):
            init_linear_as_torch(module)
            init.copy_(module.weight, F.normalize(module.weight, dim=1))
        elif module is self and self.config.queue_length:
            init.zeros_(self.queue)


class SwavForImageClassification(SSLForImageClassification):
    config: SwavConfig
    model_class = SwavModel
    _keys_to_ignore_on_load_unexpected = [r"^projector\.", r"^prototypes\.", r"^queue$"]
