# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Is the representation getting better, or collapsing? Measured while training.

kNN accuracy on a labelled dataset, where there is one, and label-free diagnostics of the last training batches:
standard deviation of the unit embeddings against 1/sqrt(d) (https://huggingface.co/papers/2011.10566, section 4.1),
effective rank (RankMe, https://huggingface.co/papers/2210.02885, eq. 1), alignment and uniformity
(https://huggingface.co/papers/2005.10242, section 4.2).
"""

from collections import deque

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.logging import get_logger
from torch import nn

from ..data.sources import ImageSource
from ..evaluation.features import EvalTransform, Features, extract_features, raw_pixel_embedding
from ..evaluation.knn import knn_accuracy
from ..recipe import MonitorConfig


logger = get_logger(__name__)

COLLAPSED_STD = 0.1  # of the healthy value 1/sqrt(d); a trained network stays above a half

COLLAPSE_ADVICE = (
    "The representation has collapsed: the embeddings of all images are nearly the same (std {ratio:.1%} of the "
    "healthy 1/sqrt(d)). Usual causes: too high a learning rate or no warm-up, too weak augmentation, BatchNorm over "
    "too small a batch, a changed predictor or target (BYOL, SimSiam), too few Sinkhorn iterations (SwAV)."
)


class Monitor:
    """kNN and collapse diagnostics of one run.

    Args:
        bank, queries: labelled sources for kNN, or None.
    """

    def __init__(
        self,
        config: MonitorConfig,
        transform: EvalTransform,
        accelerator: Accelerator,
        bank: ImageSource | None = None,
        queries: ImageSource | None = None,
        num_workers: int = 0,
    ):
        self.config, self.transform, self.accelerator = config, transform, accelerator
        self.bank, self.queries, self.num_workers = bank, queries, num_workers
        self._recent: deque[tuple[torch.Tensor, torch.Tensor]] = deque()

    def observe(self, output) -> None:
        """Keep the embeddings (B, V, D) and features (B, V, F) of a training step, newest `num_samples` images."""
        self._recent.append((output.embeddings.detach()[:, :2], output.features[:, :2]))
        while sum(len(e) for e, _ in self._recent) - len(self._recent[0][0]) >= self.config.num_samples:
            self._recent.popleft()

    def measure(self, model: nn.Module) -> dict[str, float]:
        """All measurements of the present weights; every process must call it."""
        results = self.diagnostics()
        if self.bank is not None:
            # Through the whole model: under FSDP a part of it cannot be called by itself.
            results["knn"] = self.knn(lambda images: model(pixel_values=images).features[:, 0], model)
        ratio = results.get("embedding_std")
        if ratio is not None and ratio < COLLAPSED_STD:
            logger.warning(COLLAPSE_ADVICE.format(ratio=ratio), main_process_only=True)
        return results

    def knn(self, embed, model: nn.Module | None = None) -> float:
        """Weighted kNN accuracy (0..1) of the queries against the bank under `embed`."""
        training = model.training if model is not None else False
        if model is not None:
            model.eval()
        bank, queries = (self._features(embed, s, limit) for s, limit in self._labelled())
        if model is not None:
            model.train(training)
        return knn_accuracy(bank, queries, k=self.config.k, temperature=self.config.temperature)

    def raw_pixels(self) -> float:
        """kNN accuracy of the images themselves."""
        return self.knn(raw_pixel_embedding)

    @torch.no_grad()
    def diagnostics(self) -> dict[str, float]:
        """Label-free health of this process's last batches; empty before the first step."""
        if not self._recent:
            return {}
        embeddings = torch.cat([e for e, _ in self._recent]).float()[-self.config.num_samples :]  # (N, V, D)
        features = torch.cat([f for _, f in self._recent]).float()[-self.config.num_samples :]
        unit = F.normalize(embeddings, dim=-1)
        first = unit[:, 0]
        results = {
            "embedding_std": (first.std(0).mean() * first.shape[1] ** 0.5).item(),  # 1 is healthy, 0 is collapse
            "effective_rank": effective_rank(features[:, 0]),
        }
        if unit.shape[1] > 1:
            results["alignment"] = (first - unit[:, 1]).square().sum(1).mean().item()
        if len(first) > 1:
            results["uniformity"] = torch.pdist(first).square().mul(-2).exp().mean().log().item()
        return results

    def _labelled(self) -> tuple:
        return (self.bank, self.config.max_bank), (self.queries, self.config.max_queries)

    def _features(self, embed, source: ImageSource, limit: int | None) -> Features:
        own = extract_features(
            embed,
            source,
            self.transform,
            device=self.accelerator.device,
            batch_size=self.config.batch_size,
            num_workers=self.num_workers,
            max_examples=limit,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
        )
        if own.failed:
            logger.warning(f"{len(own.failed)} image(s) could not be read for kNN, the first is {own.failed[0]}.")
        if self.accelerator.num_processes == 1:
            return own
        vectors = self.accelerator.pad_across_processes(own.vectors, dim=0)
        labels = self.accelerator.pad_across_processes(own.labels, dim=0, pad_index=-1)
        vectors, labels = self.accelerator.gather((vectors, labels))
        return Features(vectors[labels >= 0], labels[labels >= 0], own.failed)


def effective_rank(features: torch.Tensor, eps: float = 1e-7) -> float:
    """exp of the entropy of the normalised singular values of (N, D); between 1 and min(N, D)."""
    values = torch.linalg.svdvals(features.float())
    p = values / values.sum() + eps
    return (-(p * p.log()).sum()).exp().item()
