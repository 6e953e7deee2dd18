# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""A linear classifier trained online, on the encoder's features of the training batches."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import xxhash
from accelerate.utils import broadcast_object_list, reduce
from torch import Tensor, nn

from ..logs import get_logger
from .features import Features


logger = get_logger(__name__)

_RATE = 5e-3  # for Adam, which is insensitive to the scale of the features


class OnlineProbe:
    """One linear layer in float32 with an optimizer of its own, the same on all processes.

    It starts from zero, uses no random numbers, and passes no gradient to the encoder, so a run has the same weights
    with and without it.

    Args:
        numbers: classes (N,) of the training examples; -1 for those it must not learn from.
    """

    def __init__(self, numbers: np.ndarray):
        self._labels, self._classes = torch.from_numpy(numbers), int(numbers.max()) + 1
        self._about = xxhash.xxh3_64_hexdigest(np.ascontiguousarray(numbers).tobytes())
        self._head: nn.Linear | None = None

    def learn(self, features: Tensor, index: Tensor) -> None:
        """One step on a global batch; every process must call it.

        Args:
            features: (B, F) of this process's images.
            index: (B,) indices of these images in the training examples.
        """
        features, labels = features.detach().float(), self._labels[index.cpu()].to(features.device)
        head = self._built(features.shape[1], features.device)
        with torch.enable_grad():
            loss = F.cross_entropy(head(features), labels, ignore_index=-1, reduction="sum")
        gradients = torch.autograd.grad(loss, list(head.parameters()))
        count, *gradients = reduce([(labels >= 0).sum().float(), *gradients], "sum")
        for parameter, gradient in zip(head.parameters(), gradients, strict=True):
            parameter.grad = gradient / count.clamp(min=1)
        self._optimizer.step()

    @torch.no_grad()
    def accuracy(self, queries: Features) -> float | None:
        """Accuracy (0..1) on labeled queries (N, D); None before the first step."""
        if self._head is None:
            return None
        told = [self._head(vectors.to(self._head.weight.device)).argmax(1) for _, vectors in queries.blocks()]
        return (torch.cat(told) == queries.labels).float().mean().item()

    def state(self) -> dict[str, Any]:
        """State for a checkpoint; empty before the first step."""
        if self._head is None:
            return {}
        return {"about": self._about, "head": self._head.state_dict(), "optimizer": self._optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the main process's state on all processes; every process must call it."""
        state = broadcast_object_list([state])[0]
        if not state:
            return
        if state["about"] != self._about:
            logger.warning("The linear probe restarts, because the labels have changed.")
            return
        head = self._built(state["head"]["weight"].shape[1], torch.device("cpu"))
        head.load_state_dict(state["head"])
        self._optimizer.load_state_dict(state["optimizer"])

    def _built(self, width: int, device: torch.device) -> nn.Linear:
        if self._head is None:
            self._head = nn.utils.skip_init(nn.Linear, width, self._classes, dtype=torch.float32)
            for parameter in self._head.parameters():
                nn.init.zeros_(parameter)
            self._optimizer = torch.optim.Adam(self._head.parameters(), lr=_RATE)
        return self._head
