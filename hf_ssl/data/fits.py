# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Whether a network takes what a recipe will show it, found out on the meta device, which has shapes only."""

import copy
from typing import Any

import torch

from ..data.views import View
from ..models import SSLConfig
from ..models.backbones_ssl import create_backbone
from ..recipe import RecipeError


def check_fits(views: list[View], config: SSLConfig) -> None:
    """Try the network of a recipe for images with every size.

    Raises:
        RecipeError: a size that the backbone does not take.
    """
    sizes = {config.image_size: "model.image_size"}
    sizes |= {view.size: "views.local.size" if view.local else "views.all.size" for view in reversed(views)}
    size, fault = _first_refused(config, list(sizes))
    if not fault:
        return
    usual = _usual_size(config)
    if _first_refused(config, [usual])[1] is None:  # else it is not for the size
        remedy = f"set {' and '.join(sizes.values())} to {usual}{_arguments(config, size, list(sizes))}"
        raise RecipeError(f"{config.backbone} does not take images of {sizes[size]}={size} ({fault}); {remedy}.")


def _usual_size(config: SSLConfig) -> int:
    try:
        backbone = _on_meta(config)
    except ValueError as error:  # arguments that it does not take
        raise RecipeError(f"model: {error}") from None
    own = (config.backbone_args or {}).get("img_size")
    return own if isinstance(own, int) else backbone.pretrained_cfg["input_size"][-1]


def _on_meta(config: SSLConfig) -> Any:
    """A network of timm's, which have no base class with the methods that are called here."""
    with torch.device("meta"):
        return create_backbone(config).eval()


def _first_refused(config: SSLConfig, sizes: list[int]) -> tuple[int, str | None]:
    """The first size that the backbone does not take, and what it says then; None where it takes all."""
    size = sizes[0]
    try:
        backbone = _on_meta(config)
        for size in sizes:
            with torch.no_grad():
                backbone.forward_head(backbone.forward_features(_images((2,), config, size)))
    except Exception as error:  # assertions of timm, shapes of torch
        return size, (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")[:120]
    return size, None


def _images(batch: tuple[int, ...], config: SSLConfig, size: int) -> torch.Tensor:
    return torch.empty(*batch, config.num_channels, size, size, device="meta")


def _arguments(config: SSLConfig, wanted: int, sizes: list[int]) -> str:
    """The end of the sentence: an argument of timm's with which the backbone takes all sizes, where there is one."""
    for name, value in (("dynamic_img_size", True), ("img_size", wanted)):
        changed = copy.deepcopy(config)
        changed.backbone_args = {**(config.backbone_args or {}), name: value}
        if _first_refused(changed, sizes)[1] is None:
            return f", or model.backbone_args={{{name}: {str(value).lower()}}}"
    return ""
