# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Pretrained encoders of others to start from (`model.init_from`): timm's, transformers' and those of hf_ssl."""

from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import nn
from transformers import AutoImageProcessor, AutoModel

from ..models import SSLConfig, create_backbone, load_backbone, timm_fields
from ..recipe import Recipe, RecipeError


def start_from_encoder(recipe: Recipe) -> dict[str, torch.Tensor] | None:
    """The tensors of `model.init_from`, in timm's names; what its images look like fills gaps of `recipe.model`.

    "timm/resnet50.a1_in1k" is a model of timm with its weights; anything else is a folder or a Hub id that `AutoModel`
    loads: an encoder of hf_ssl, one in timm's format, or one of transformers, for which `model.backbone` says which
    timm network it is.

    Raises:
        RecipeError: it cannot be loaded, or is another network than the recipe's.
    """
    place = recipe.model.get("init_from")
    if place is None:
        return None
    if recipe.method == "avid":
        raise RecipeError("model.init_from is for encoders of images; start AVID from a run with train.init_from.")
    try:
        encoder, fields = _open(place)
        own, theirs = recipe.model.get("backbone"), fields.get("backbone")
        if own and theirs and timm.models.split_model_name_tag(own)[0] != theirs:
            raise ValueError(f"it is a {theirs}; set model.backbone={theirs}.")
        recipe.model |= {key: value for key, value in fields.items() if key not in recipe.model}
        if "backbone" not in recipe.model:
            raise RecipeError(f"Say which timm network {place} is, such as model.backbone=resnet50.")
        known = {key: value for key, value in recipe.model.items() if key != "init_from"}
        with torch.device("cpu"):
            backbone = create_backbone(SSLConfig(**{k: v for k, v in known.items() if k in SSLConfig().to_dict()}))
        if isinstance(encoder, nn.Module):
            copy_by_execution(encoder, backbone, recipe.model.get("image_size", 224))
        else:
            load_backbone(backbone, encoder, place)
    except (OSError, ValueError, RuntimeError) as error:
        raise RecipeError(f"model.init_from={place}: {' '.join(str(error).split())}") from error
    return backbone.state_dict()


def _open(place: str) -> tuple[dict[str, torch.Tensor] | nn.Module, dict[str, Any]]:
    """Tensors in timm's names and the fields of `SSLConfig` that they decide, or else the module itself."""
    if place.startswith("timm/"):
        name = place.removeprefix("timm/")
        model = timm.create_model(name, pretrained=True, num_classes=0)
        return model.state_dict(), timm_fields(name, model)
    model = AutoModel.from_pretrained(place).eval()
    if isinstance(model.config, SSLConfig):
        names = ("backbone", "backbone_args", "stem", "padding", "num_channels", "image_mean", "image_std")
        return model.backbone.state_dict(), {name: getattr(model.config, name) for name in names}
    if hasattr(model, "timm_model"):
        arguments = {k: v for k, v in (model.config.model_args or {}).items() if k != "in_chans"}
        model.timm_model.pretrained_cfg = {"architecture": model.config.architecture, **model.config.pretrained_cfg}
        fields = timm_fields(model.config.architecture, model.timm_model)
        return model.timm_model.state_dict(), fields | {"backbone_args": arguments or None}
    try:
        processor = AutoImageProcessor.from_pretrained(place)
    except (OSError, ValueError):
        return model, {}
    return model, {"image_mean": tuple(processor.image_mean), "image_std": tuple(processor.image_std)}


@torch.no_grad()
def copy_by_execution(source: nn.Module, target: nn.Module, image_size: int) -> None:
    """Copy the tensors of a transformers encoder into a timm network that computes the same, layer by layer in the
    order in which both use them, whatever their names; then both must give the same features.

    What a ViT has as three layers for query, key and value is one in timm.

    Raises:
        ValueError: they are different networks.
    """
    source, target = source.eval(), target.eval()
    images = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    theirs = _layers_in_order(source, lambda: source(pixel_values=images))
    ours = _layers_in_order(target, lambda: target(images))
    for leaves in (True, False):  # tokens and position embeddings are those of whole networks, or of parts of them
        there, here = ([layer for layer in layers if _is_leaf(layer[1]) == leaves] for layers in (theirs, ours))
        tensors = _tensors(there, [layer.weight.shape for _, layer in here if isinstance(layer, nn.Linear)])
        wanted = [tensor for _, layer in here for tensor in _own(layer)]
        if not leaves:  # the token that stands for a masked patch has no use here
            tensors = [t for t in tensors if t.shape in {w.shape for w in wanted}]
        if [t.shape for t in tensors[: len(wanted)]] != [t.shape for t in wanted]:
            raise ValueError(
                f"it is not laid out as this backbone ({len(theirs)} layers there, {len(ours)} here, or other sizes); "
                "timm has the weights of most networks: model.init_from=timm/NAME."
            )
        for a, b in zip(tensors, wanted, strict=False):  # a pooler behind them is left over
            b.copy_(a)
    expected = source(pixel_values=images).last_hidden_state
    if not (target.forward_features(images) - expected).abs().max() < 1e-3 * expected.abs().max():
        raise ValueError("its layers have the sizes of this backbone's, but compute something else.")


def _layers_in_order(model: nn.Module, run: Callable[[], Any]) -> list[tuple[str, nn.Module]]:
    called: list[nn.Module] = []
    names = {module: name for name, module in model.named_modules() if _own(module)}
    handles = [module.register_forward_hook(lambda m, *_: called.append(m)) for module in names]
    run()
    for handle in handles:
        handle.remove()
    return [(names[module], module) for module in dict.fromkeys(called)]


def _tensors(layers: list[tuple[str, nn.Module]], wanted: list[torch.Size]) -> list[torch.Tensor]:
    """The tensors of all layers in order; query, key and value together where a layer of three times the width is
    wanted.
    """
    tensors, i = [], 0
    while i < len(layers):
        three = layers[i : i + 3]
        initials = "".join(name.rpartition(".")[2][0] for name, _ in three)
        shapes = {layer.weight.shape for _, layer in three if isinstance(layer, nn.Linear)}
        if sorted(initials) == ["k", "q", "v"] and len(shapes) == 1:
            width, depth = shapes.pop()
            if torch.Size((3 * width, depth)) in wanted:
                parts = [three[initials.index(letter)][1] for letter in "qkv"]
                biases = [part.weight.new_zeros(width) if part.bias is None else part.bias for part in parts]
                tensors.append(torch.cat([part.weight for part in parts]))
                tensors += [torch.cat(biases)] if any(part.bias is not None for part in parts) else []
                i += 3
                continue
        tensors += _own(layers[i][1])
        i += 1
    return tensors


def _is_leaf(module: nn.Module) -> bool:
    """Whether all its tensors are its own; timm's BatchNorm has an activation inside."""
    return len(list(module.parameters())) == len(list(module.parameters(recurse=False)))


def _own(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]
