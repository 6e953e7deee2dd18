# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Monitor representation quality and collapse during training.

kNN accuracy, if there is a labeled dataset, and label-free diagnostics on the last training batches: standard
deviation of the normalized embeddings relative to 1/sqrt(d) (https://huggingface.co/papers/2011.10566, section 4.1),
effective rank (RankMe, https://huggingface.co/papers/2210.02885, eq. 1), alignment and uniformity
(https://huggingface.co/papers/2005.10242, section 4.2).
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedConfig

from .. import evaluation
from ..data.modality import Modality
from ..data.sources import Source
from ..evaluation.features import Features, extract
from ..evaluation.probe import OnlineProbe
from ..logs import get_logger
from ..recipe import MonitorConfig


logger = get_logger(__name__)

COLLAPSED_STD = 0.1  # fraction of the healthy value 1/sqrt(d); trained networks stay above 0.5

COLLAPSE_ADVICE = (
    "The representation has collapsed: the embeddings of all images are nearly the same (std {ratio:.1%} of the "
    "healthy 1/sqrt(d)). Usual causes: learning rate too high or no warm-up, augmentation too weak, BatchNorm over "
    "too small a batch, a changed predictor or target (BYOL, SimSiam), too few Sinkhorn iterations (SwAV)."
)


class Monitor:
    """Accuracy and collapse diagnostics of one run.

    Args:
        model_config: config of the model, with image size or clip length.
        bank, queries: evaluation data, see `hf_ssl.data.bank.paired`, or None.
        trained_on: the training source.
    """

    def __init__(
        self,
        config: MonitorConfig,
        modality: Modality,
        model_config: PreTrainedConfig,
        accelerator: Accelerator,
        bank: Source | None = None,
        queries: Source | None = None,
        num_workers: int = 0,
        trained_on: Any = None,
    ):
        self.config, self.accelerator, self.num_workers = config, accelerator, num_workers
        self.transform = modality.inference(model_config)
        self.probe = OnlineProbe(trained_on.numbers) if config.probe else None
        self.measures = modality.half(evaluation.__name__).Measures(config, self._extract, bank, queries, trained_on)
        self.collapse = ""  # warning of the last measurement, if any
        self._recent: deque[tuple[torch.Tensor, torch.Tensor]] = deque()
        self._unreadable: set[str] = set()  # files already named in the log

    def observe(self, output, index: torch.Tensor | None = None) -> None:
        """Keep embeddings (B, V, D) and features (B, V, F) of the newest `num_samples` training images, and train the
        probe on the features of the first views; every process must call it.

        Only the main process keeps them, because only it reports the diagnostics.

        Args:
            index: (B,) row of each example.
        """
        if self.probe is not None and index is not None:
            self.probe.learn(output.features[:, 0], index)
        if not self.accelerator.is_main_process:
            return
        self._recent.append((output.embeddings.detach()[:, :2], output.features[:, 0]))
        while sum(len(e) for e, _ in self._recent) - len(self._recent[0][0]) >= self.config.num_samples:
            self._recent.popleft()

    def state(self) -> dict[str, Any]:
        """State for a checkpoint, so that an interrupted run measures the same."""
        if not self._recent:
            return {}
        parts = (torch.cat(part)[-self.config.num_samples :] for part in zip(*self._recent, strict=True))
        kept = {name: part.cpu() for name, part in zip(("embeddings", "features"), parts, strict=True)}
        return kept if self.probe is None else {**kept, "probe": self.probe.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the state of a checkpoint; every process must call it."""
        if self.probe is not None:
            self.probe.restore(state.get("probe", {}))
        if state and self.accelerator.is_main_process:
            device = self.accelerator.device
            self._recent = deque([(state["embeddings"].to(device), state["features"].to(device))])

    def measure(self, model: nn.Module) -> dict[str, float]:
        """All measurements with the current weights; every process must call it."""
        with evaluating(model):
            results = {**self.diagnostics(), **self.measures.of(model, self.probe)}
        ratio = results.get("embedding_std")
        self.collapse = ""
        if ratio is not None and ratio < COLLAPSED_STD:
            signs = getattr(model, "collapse", "")  # method-specific advice
            self.collapse = f"{COLLAPSE_ADVICE.format(ratio=ratio)} {signs}".rstrip()
            logger.warning(self.collapse, main_process_only=True)
        return results

    def baseline(self, model: nn.Module) -> dict[str, float]:
        """Measurements before training; empty if there is nothing to measure."""
        return {**self.measures.untrained(), **self.measure(model)} if self.measures.ready() else {}

    def headline(self, values: dict[str, float]) -> str | None:
        """The most important result of a measurement, as text for the terminal."""
        return self.measures.headline(values)

    @torch.no_grad()
    def diagnostics(self) -> dict[str, float]:
        """Label-free diagnostics of this process's last batches; empty before the first step."""
        if not self._recent:
            return {}
        embeddings = torch.cat([e for e, _ in self._recent]).float()[-self.config.num_samples :]  # (N, V, D)
        features = torch.cat([f for _, f in self._recent]).float()[-self.config.num_samples :]
        unit = F.normalize(embeddings, dim=-1)
        first = unit[:, 0]
        results = {
            "embedding_std": (first.std(0).mean() * first.shape[1] ** 0.5).item(),  # 1 is healthy, 0 is collapse
            "effective_rank": effective_rank(features),
        }
        if unit.shape[1] > 1:
            results["alignment"] = (first - unit[:, 1]).square().sum(1).mean().item()
        if len(first) > 1:
            results["uniformity"] = torch.pdist(first).square().mul(-2).exp().mean().log().item()
        return results

    def _extract(self, embed, source: Source) -> dict[str, Features]:
        """Extract features, gathered from all processes."""
        found = extract(
            embed,
            source,
            self.transform,
            device=self.accelerator.device,
            batch_size=self.config.batch_size,
            num_workers=self.num_workers,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
        )
        first = next(iter(found.values()))
        failed = first.failed
        if new := [name for name in failed if name not in self._unreadable]:
            self._unreadable.update(new)
            logger.warning(f"{len(new)} file(s) could not be read for the monitor, the first is {new[0]}.")
        if self.accelerator.num_processes == 1:
            return found
        padding = -2  # differs from every label, and from -1 for unlabeled examples
        labels = self.accelerator.pad_across_processes(first.labels, dim=0, pad_index=padding)
        vectors = self.accelerator.pad_across_processes({name: one.vectors for name, one in found.items()})
        vectors, labels = self.accelerator.gather((vectors, labels))
        known = labels != padding
        return {name: Features(v[known], labels[known], failed) for name, v in vectors.items()}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Context with the model in evaluation mode; restores its mode afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def effective_rank(features: torch.Tensor, eps: float = 1e-7) -> float:
    """exp of the entropy of the normalized singular values of (N, D); between 1 and min(N, D)."""
    values = torch.linalg.svdvals(features.float())
    p = values / values.sum() + eps
    return (-(p * p.log()).sum()).exp().item()
