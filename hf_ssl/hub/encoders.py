# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Start from a pretrained encoder (`model.init_from`) of timm, transformers or hf_ssl."""

import re
from collections.abc import Callable
from typing import Any

import timm
import torch
from huggingface_hub.constants import HF_HUB_OFFLINE
from torch import nn
from transformers import AutoImageProcessor

from ..absent import is_absent
from ..methods import method_classes
from ..models import METHODS, SSLConfig, create_backbone, load_backbone, timm_fields
from ..recipe import Recipe, RecipeError
from .weights import open_encoder


def start_from_encoder(recipe: Recipe) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Load `model.init_from`: its tensors with timm's names, and the fields of `recipe.model` that they determine.

    "timm/resnet50.a1_in1k" is a timm model with its weights. Anything else is a folder or Hub id that `AutoModel`
    loads: an hf_ssl encoder, one in timm's format, or a transformers encoder, for which `model.backbone` must name the
    equivalent timm network. For AVID, the weights go to the video tower. Fields set by the recipe are not returned.

    Raises:
        RecipeError: it cannot be loaded, or is a different network than the recipe's.
    """
    ours, place = dict(recipe.model), recipe.model["init_from"]
    config_class = method_classes(recipe.method)[0]
    name = {field: config_class.encoder_field(field) for field in SSLConfig().to_dict()}
    key = name["backbone"]
    try:
        encoder, described = _open(place)
        own, theirs = ours.get(key), described.get("backbone")
        if own and theirs and timm.models.split_model_name_tag(own)[0] != theirs:
            raise ValueError(f"it is a {theirs}; set model.{key}={theirs}.")
        for field, value in described.items():
            if hasattr(config_class, name[field]):
                ours.setdefault(name[field], value)
        if key not in ours:
            raise ValueError(f"set its timm network, such as model.{key}=resnet50.")
        with torch.device("cpu"):
            backbone = create_backbone(SSLConfig(**{f: ours[n] for f, n in name.items() if n in ours}))
        if isinstance(encoder, nn.Module):
            copy_by_execution(encoder, backbone, ours.get("image_size", 224))
        else:
            load_backbone(backbone, encoder, place)
    except Exception as error:  # foreign files may make timm and transformers raise anything
        if is_absent(error) and not isinstance(error, RecipeError):
            said = "its weights are not cached and the Hub could not be reached"
            raise RecipeError(f"model.init_from={place}: {said}{' (HF_HUB_OFFLINE=1)' * HF_HUB_OFFLINE}.") from error
        raise RecipeError(f"model.init_from={place}: {' '.join(str(error).split())}") from error
    return backbone.state_dict(), {key: value for key, value in ours.items() if key not in recipe.model}


def _open(place: str) -> tuple[dict[str, torch.Tensor] | nn.Module, dict[str, Any]]:
    """Tensors with timm's names and the `SSLConfig` fields that they determine, or else the module itself."""
    if place.startswith("timm/"):
        name = place.removeprefix("timm/")
        model = timm.create_model(name, pretrained=True, num_classes=0)
        return model.state_dict(), timm_fields(name, model)
    model = open_encoder(place, pooler=False).float()  # weights may be saved in half precision
    model = getattr(model, "vision_model", model)  # CLIP and SigLIP also have a text model
    if model.config.model_type in METHODS and hasattr(model, "backbone"):
        names = ("backbone", "backbone_args", "stem", "padding", "first_shortcut")
        names += ("num_channels", "image_mean", "image_std")
        return model.backbone.state_dict(), {name: getattr(model.config, name) for name in names}
    if hasattr(model, "timm_model"):
        arguments = {k: v for k, v in (model.config.model_args or {}).items() if k != "in_chans"}
        model.timm_model.pretrained_cfg = {"architecture": model.config.architecture, **model.config.pretrained_cfg}
        fields = timm_fields(model.config.architecture, model.timm_model)
        return model.timm_model.state_dict(), fields | {"backbone_args": arguments or None}
    if model.main_input_name != "pixel_values":
        raise ValueError("it is not an image encoder.")
    try:
        processor = AutoImageProcessor.from_pretrained(place, trust_remote_code=False)
    except (OSError, ValueError):
        return model, {}
    return model, {"image_mean": tuple(processor.image_mean), "image_std": tuple(processor.image_std)}


@torch.no_grad()
def copy_by_execution(source: nn.Module, target: nn.Module, image_size: int) -> None:
    """Copy the tensors of a transformers encoder into an equivalent timm network, whatever their names.

    Tensors of equal shape (ignoring dimensions of size 1) are matched in execution order; then both networks must give
    the same features. Separate query, key and value layers are concatenated if timm has fused ones. If timm has no
    position embedding for the class token, it is added to the token.

    Raises:
        ValueError: the networks differ.
    """
    source, target = source.eval(), target.eval()
    images = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    ours = _tensors(_layers_in_order(target, lambda: target(images)))
    theirs = _joined(_layers_in_order(source, lambda: source(pixel_values=images)), {t.shape for _, t in ours})
    found, wanted = _alike(theirs), _alike(ours)
    head = {tensor for name, tensor in ours if re.match(r"(head|fc_norm|norm)\.", name)}
    for kind, tensors in wanted.items():  # norms after the features keep their initial values if the source has none
        if len(found.get(kind, ())) < len(tensors):
            wanted[kind] = [tensor for tensor in tensors if tensor not in head]
    for rows, width in [kind[1:] for kind in wanted if len(kind) == 3 and kind not in found]:
        positions, tokens = found.get((False, rows + 1, width)), found.get((False, width))
        if positions and tokens:
            table = positions[0].reshape(rows + 1, width)
            tokens[0] = tokens[0].reshape(width) + table[0]
            found[False, rows, width] = [table[1:]]
    if any(len(found.get(kind, ())) < len(tensors) for kind, tensors in wanted.items()):
        raise ValueError(
            "its layers do not match this backbone; set the equivalent timm network with model.backbone and "
            "model.backbone_args, or use timm's own weights: model.init_from=timm/NAME."
        )
    for kind, tensors in wanted.items():
        for there, here in zip(found[kind], tensors, strict=False):  # ignore a pooler at the end of the source
            here.copy_(there.reshape(here.shape))
    expected, features = source(pixel_values=images), target.forward_features(images)
    pairs = [(expected.last_hidden_state, features)]
    if expected.get("pooler_output") is not None:  # some networks normalize only the pooled features
        pairs.append((expected.pooler_output, target.forward_head(features, pre_logits=True)))
    if not any(_means_are_close(*pair, target.num_features) for pair in pairs):
        raise ValueError(
            "its layers match this backbone's sizes, but give different features; its activation (act_layer) or "
            "padding may differ, which model.backbone_args sets."
        )


def _layers_in_order(model: nn.Module, run: Callable[[], Any]) -> list[tuple[str, nn.Module]]:
    """Modules in call order; modules never called, because their parent reads their tensors, follow the parent."""
    called: list[nn.Module] = []
    names = {module: name for name, module in model.named_modules()}
    handles = [module.register_forward_pre_hook(lambda m, *_: called.append(m)) for module in names]
    run()
    for handle in handles:
        handle.remove()
    layers = [(names[module], module) for module in dict.fromkeys(called)]
    for module, name in names.items():
        if module not in called:
            owners = [i for i, (owner, _) in enumerate(layers) if name.startswith(f"{owner}." if owner else "")]
            layers.insert(owners[-1] + 1, (name, module))
    return layers


def _tensors(layers: list[tuple[str, nn.Module]]) -> list[tuple[str, torch.Tensor]]:
    """Tensors in the state dicts of layers, except the mask token, which does not affect features."""
    return [
        (f"{path}.{name}", tensor)
        for path, layer in layers
        for name, tensor in layer.state_dict(keep_vars=True).items()
        if "." not in name and name != "mask_token"  # without tensors of children
    ]


def _joined(layers: list[tuple[str, nn.Module]], wanted: set[torch.Size]) -> list[tuple[str, torch.Tensor]]:
    """Tensors of layers; query, key and value (or key and value) are concatenated if that shape is wanted."""
    tensors, i = [], 0
    while i < len(layers):
        for letters in ("qkv", "kv"):
            some = {name.rpartition(".")[2][:1]: layer for name, layer in layers[i : i + len(letters)]}
            parts = [some.get(letter) for letter in letters]
            if all(isinstance(part, nn.Linear) and part.weight.shape == parts[0].weight.shape for part in parts):
                width, depth = parts[0].weight.shape
                if (len(letters) * width, depth) in wanted:
                    tensors.append(("weight", torch.cat([part.weight for part in parts])))
                    biases = [part.bias for part in parts if part.bias is not None]
                    if biases and (len(letters) * width,) in wanted:
                        zeros = torch.zeros(width)
                        biases = [torch.cat([zeros if part.bias is None else part.bias for part in parts])]
                    tensors += [("bias", bias) for bias in biases]
                    i += len(letters)
                    break
        else:
            tensors += _tensors(layers[i : i + 1])
            i += 1
    return tensors


def _alike(tensors: list[tuple[str, torch.Tensor]]) -> dict[tuple, list[torch.Tensor]]:
    """Group tensors by shape; residual scales separately, because their place in the call order differs."""
    groups: dict[tuple, list[torch.Tensor]] = {}
    for name, tensor in tensors:
        scale = re.search("gamma|lambda|layer_scale", name) is not None
        groups.setdefault((scale, *(n for n in tensor.shape if n != 1)), []).append(tensor)
    return groups


def _means_are_close(a: torch.Tensor, b: torch.Tensor, width: int) -> bool:
    """Whether the means over tokens or positions agree, with the channels in any dimension."""
    if width not in a.shape[1:] or width not in b.shape[1:]:
        return False
    a, b = (x.movedim(list(x.shape).index(width, 1), 1).reshape(len(x), width, -1).mean(2) for x in (a, b))
    return bool((a - b).abs().max() < 1e-4 * a.abs().max())
