# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Check that a backbone accepts the image sizes of a recipe, and configure it to if it can.

The backbone runs on the meta device, which computes shapes only.
"""

import copy
import json
from functools import lru_cache
from typing import Any

import timm
import torch

from ..data.views import View
from ..models import SSLConfig
from ..models.backbones_ssl import create_backbone
from ..recipe import RecipeError
from ..recipe.continuation import NETWORK_FIELDS


def fit_sizes(views: list[View], config: SSLConfig, pretrained: bool) -> None:
    """Extend `backbone_args` so that a fixed-size network (ViT, Swin ...) accepts the image sizes of the recipe.

    The arguments are timm's and are saved with the model, so `dynamic_img_size` still applies after loading.

    Args:
        pretrained: keep `img_size` at the pretrained size, because the position embeddings have that size.
    """
    own = config.backbone_args or {}
    if not _is_for_one_size(config.backbone):
        return
    sizes = list(dict.fromkeys([config.image_size, *(view.size for view in views)]))
    size = {"img_size": _usual_size(config) if pretrained else views[0].size}
    dynamic = size | {"dynamic_img_size": True}
    for more in ({}, dynamic, dynamic | {"dynamic_img_pad": True}, {"img_size": views[0].size}):
        changed = copy.deepcopy(config)
        changed.backbone_args = {**more, **own} or None
        if _first_refused(changed, sizes)[1] is None:
            config.backbone_args = changed.backbone_args
            return


def _is_for_one_size(backbone: str) -> bool:
    facts = timm.get_pretrained_cfg(backbone, allow_unregistered=True)
    return facts is not None and facts.fixed_input_size


def check_fits(views: list[View], config: SSLConfig) -> None:
    """Try the backbone with every image size of a recipe.

    Raises:
        RecipeError: the backbone does not accept a size.
    """
    sizes = {config.image_size: "model.image_size"}
    sizes |= {view.size: "views.local.size" if view.local else "views.all.size" for view in reversed(views)}
    size, fault = _first_refused(config, list(sizes))
    if not fault:
        return
    usual = _usual_size(config)
    if _first_refused(config, [usual])[1] is None:  # otherwise the size is not the reason
        raise RecipeError(
            f"{config.backbone} does not support {sizes[size]}={size} ({fault}); set "
            f"{' and '.join(sizes.values())} to one size, such as {usual}, or choose another model.backbone."
        )


def _usual_size(config: SSLConfig) -> int:
    try:
        backbone = _on_meta(config)
    except ValueError as error:  # invalid backbone_args
        raise RecipeError(f"model: {error}") from None
    own = (config.backbone_args or {}).get("img_size")
    return own if isinstance(own, int) else backbone.pretrained_cfg["input_size"][-1]


def _on_meta(config: SSLConfig) -> Any:
    """The backbone on the meta device. Typed Any: timm has no base class that declares the methods used here."""
    with torch.device("meta"):
        return create_backbone(config).eval()


def _first_refused(config: SSLConfig, sizes: list[int]) -> tuple[int, str | None]:
    """The first size that the backbone rejects and the error message; the message is None if it accepts all."""
    return _try(json.dumps({name: getattr(config, name) for name in NETWORK_FIELDS}, sort_keys=True), tuple(sizes))


@lru_cache  # a recipe is resolved several times
def _try(fields: str, sizes: tuple[int, ...]) -> tuple[int, str | None]:
    size, config = sizes[0], SSLConfig(**json.loads(fields))
    try:
        backbone = _on_meta(config)
        for size in sizes:
            with torch.no_grad():
                backbone.forward_head(backbone.forward_features(_images((2,), config, size)))
    except Exception as error:  # timm asserts, torch raises shape errors
        return size, (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")[:120]
    return size, None


def _images(batch: tuple[int, ...], config: SSLConfig, size: int) -> torch.Tensor:
    return torch.empty(*batch, config.num_channels, size, size, device="meta")
