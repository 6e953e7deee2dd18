# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Networks for `hf_ssl.training.supervised`: linear layers on a frozen encoder, or fine-tuning of a whole model."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForImageClassification

from ..disk import first_line
from ..errors import RecipeError
from ..evaluation.encoders import TIMM, Encoder
from ..evaluation.protocols import Supervised
from ..logs import without_bars, without_load_report


class Heads(nn.Module):
    """Linear heads on the pooled features of a frozen encoder: (B, C, H, W) -> logits (heads, B, K)."""

    def __init__(self, encoder: Encoder, width: int, classes: int, heads: int):
        super().__init__()
        self.encoder, self._embed = encoder.model.requires_grad_(False), encoder.embed
        self.heads = nn.ModuleList(nn.Linear(width, classes) for _ in range(heads))
        for head in self.heads:
            nn.init.normal_(head.weight, std=0.01)  # type: ignore[arg-type]
            nn.init.zeros_(head.bias)  # type: ignore[arg-type]

    def train(self, mode: bool = True) -> "Heads":
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            features = self._embed({"pixel_values": pixel_values})[""]
        return torch.stack([head(features) for head in self.heads])

    def groups(self, settings: Supervised) -> list[dict[str, Any]]:
        return [{"params": list(h.parameters()), "peak_lr": lr} for h, lr in zip(self.heads, settings.lr, strict=True)]


class Whole(nn.Module):
    """A fully trainable `XForImageClassification`: (B, C, H, W) -> logits (1, B, K)."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=pixel_values).logits[None]

    def groups(self, settings: Supervised) -> list[dict[str, Any]]:
        wrapped: Any = getattr(self.model, "timm_model", None)
        head = wrapped.get_classifier() if wrapped is not None else self.model.get_submodule("classifier")
        last = {id(parameter) for parameter in head.parameters()}
        parts = ([p for p in self.parameters() if (id(p) in last) == here] for here in (False, True))
        rates = (settings.lr[0], settings.lr[0] if settings.head_lr is None else settings.head_lr)
        return [{"params": part, "peak_lr": lr} for part, lr in zip(parts, rates, strict=True)]


def size_of(encoder: Encoder) -> int:
    """Image size in pixels of the encoder's own preprocessing."""
    blank = encoder.transform.inputs(*encoder.transform.blank(None), device=torch.device("cpu"))  # type: ignore[arg-type]
    return blank["pixel_values"].shape[-1]


def network_of(encoder: Encoder, settings: Supervised, classes: int, size: int) -> nn.Module:
    if settings.frozen:
        black = torch.zeros(1, len(normalization_of(encoder)[0]), size, size)
        with torch.no_grad():
            width = encoder.embed({"pixel_values": black})[""].shape[1]
        return Heads(encoder, width, classes, len(settings.lr))
    return Whole(_classifier(encoder, classes))


def _classifier(encoder: Encoder, classes: int) -> nn.Module:
    """The encoder's `XForImageClassification` with a new linear layer.

    Raises:
        RecipeError: there is no such class, or it cannot be loaded.
    """
    try:
        if encoder.name.startswith(TIMM):
            config = encoder.config.__class__.from_dict({**encoder.config.to_dict(), "num_labels": classes})
            model = AutoModelForImageClassification.from_config(config)
            weights = encoder.model.get_submodule("timm_model").state_dict()
            model.timm_model.load_state_dict(weights, strict=False)
            return model
        location = encoder.folder or encoder.name
        with without_load_report(), without_bars() if encoder.folder else nullcontext():
            # The report would list the new head; that nothing else is missing was checked when the encoder was opened.
            return AutoModelForImageClassification.from_pretrained(
                location, num_labels=classes, ignore_mismatched_sizes=True, trust_remote_code=False
            )
    except Exception as error:  # transformers raises many types for foreign files
        raise RecipeError(f"{encoder.name} cannot be fine-tuned as a classifier: {first_line(error)}") from error


def normalization_of(encoder: Encoder) -> tuple[tuple[float, ...], tuple[float, ...]]:
    transform: Any = encoder.transform
    if hasattr(transform, "processor"):
        return tuple(transform.processor.image_mean), tuple(transform.processor.image_std)
    return transform.mean, transform.std
