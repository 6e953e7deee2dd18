# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Detect the timm model of a ResNet or RegNet from its tensors' names and shapes."""

import re
from typing import Any

import timm
import torch

from ...models.configuration_swav import RG_10B
from ...recipe import RecipeError
from .common import Layout, Pair, Tensors, rename


BACKBONE = "encoder.backbone."

_DEPTHS = {  # depths of the four stages, with bottlenecks or without -> torchvision's number
    (False, (2, 2, 2, 2)): 18,
    (False, (3, 4, 6, 3)): 34,
    (True, (2, 2, 2, 2)): 26,
    (True, (3, 4, 6, 3)): 50,
    (True, (3, 4, 23, 3)): 101,
    (True, (3, 8, 36, 3)): 152,
    (True, (3, 24, 36, 3)): 200,
}

# In timm's ResNet, the first convolution always has 64 channels. CLIP's ResNet with these arguments is a plain ResNet
# whose first convolution widens with the rest.
WIDE = {
    "stem_type": "7x7",
    "stem_chs": 64,  # times width_factor
    "stem_pool": "maxpool",
    "downsample": "conv1x1",
    "aa_layer": "",
    "head_type": "classifier",
}
_WIDE_NAMES = (
    ("conv1.{*x}", "stem.conv1.conv.{*x}"),
    ("bn1.{*x}", "stem.conv1.bn.{*x}"),
    *(
        (f"layer{{s+1}}.{{b}}.{theirs}{i}.{{*x}}", f"stages.{{s}}.{{b}}.conv{i}_{size}.{ours}.{{*x}}")
        for i, size in ((1, "1x1"), (2, "kxk"), (3, "1x1"))
        for theirs, ours in (("conv", "conv"), ("bn", "bn"))
    ),
    ("layer{s+1}.{b}.downsample.0.{*x}", "stages.{s}.{b}.shortcut.conv.{*x}"),
    ("layer{s+1}.{b}.downsample.1.{*x}", "stages.{s}.{b}.shortcut.bn.{*x}"),
)


def resnet(prefix: str) -> tuple[Pair, ...]:
    """Name pairs of a torchvision ResNet with a prefix, theirs and ours."""
    names = (
        "conv1.weight",
        "bn1.{*x}",
        "layer{s}.{b}.conv{i}.weight",
        "layer{s}.{b}.bn{i}.{*x}",
        "layer{s}.{b}.downsample.{i}.{*x}",
    )
    return tuple((prefix + name, BACKBONE + name) for name in names)


def backbone_fields(tensors: Tensors) -> dict[str, Any]:
    """`backbone` and `backbone_args` of the configuration.

    Raises:
        RecipeError: timm does not have the network.
    """
    own = {name.removeprefix(BACKBONE): t for name, t in tensors.items() if name.startswith(BACKBONE)}
    return _regnet_fields(own) if "stem.conv.weight" in own else _resnet_fields(own)


def _resnet_fields(own: Tensors) -> dict[str, Any]:
    blocks = [name.split(".") for name in own if re.fullmatch(r"layer[1-4]\.\d+\.conv1\.weight", name)]
    depths = tuple(sum(name[0] == f"layer{s}" for name in blocks) for s in range(1, 5))
    depth = _DEPTHS.get(("layer1.0.conv3.weight" in own, depths))
    firsts = [own.get(name) for name in ("conv1.weight", *(f"layer{s}.0.conv1.weight" for s in range(1, 5)))]
    if depth is None or any(tensor is None or tensor.dim() != 4 or not len(tensor) for tensor in firsts):
        raise RecipeError(f"The tensors do not match any ResNet-18 to 200; blocks in the four stages: {depths}.")
    stem, *channels = (len(tensor) for tensor in firsts)
    if stem == 64:
        plain = channels == [64, 128, 256, 512]
        return {"backbone": f"resnet{depth}", "backbone_args": None if plain else {"channels": channels}}
    if depth < 50 or channels != [stem, 2 * stem, 4 * stem, 8 * stem]:
        raise RecipeError(
            f"A ResNet-{depth} with a first convolution of {stem} channels and stages of {channels} is not supported; "
            "other than 64 needs 50 layers or more, and stages that start at that width and double."
        )
    if depth not in (50, 101):
        return {"backbone": f"resnet{depth}", "backbone_args": {"channels": channels}, "stem": "wide"}
    return {"backbone": f"resnet{depth}_clip", "backbone_args": WIDE | {"width_factor": stem / 64}}


def _regnet_fields(own: Tensors) -> dict[str, Any]:
    shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
    blocks = len({match[0] for name in own if (match := re.match(r"s\d+\.b\d+\.", name))})
    configs = timm.models.regnet.model_cfgs
    names = [name for name in timm.list_models("regnety_*") if name in configs and configs[name].depth == blocks]
    candidates = [(name, None) for name in names] + [("regnety_2560", dict(RG_10B))] * (blocks == RG_10B["depth"])
    for name, arguments in candidates:
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=0, **(arguments or {}))
        expected = {key: tuple(t.shape) for key, t in model.state_dict().items()}
        # A rough match selects the network; `account` then names all missing, unexpected or misshapen tensors.
        if sum(shapes.get(key) == shape for key, shape in expected.items()) > 0.8 * max(len(expected), len(shapes)):
            return {"backbone": name, "backbone_args": arguments}
    widths = [shapes.get(f"s{s}.b1.conv1.conv.weight", "?") for s in range(1, 5)]
    raise RecipeError(
        f"timm has no RegNetY of {blocks} blocks whose stages start with weights {widths}. The released pretrained "
        "file of RG-256 is known to be a different network than its name says."
    )


def rename_backbone(tensors: Tensors, backbone: str, *, back: bool = False) -> Tensors:
    """Rename a ResNet's tensors from torchvision's names to those of the timm model `backbone`, or back."""
    if not backbone.endswith("_clip"):
        return tensors
    pairs = [pair[::-1] for pair in _WIDE_NAMES] if back else _WIDE_NAMES

    def new(name: str) -> str:
        head, found, tail = name.partition(BACKBONE)
        return head + found + (rename(tail, pairs) or tail)

    return {new(name): tensor for name, tensor in tensors.items()}


# Only an encoder, from any training, with its linear classifier if it has one.
_ALONE = {"prefix": "", "ignored": r"(?!encoder\.|classifier\.).*"}
torchvision = Layout(
    "torchvision",
    "",
    "",
    "See the original.",
    mark="conv1.",
    pairs=(*resnet(""), ("fc.{*x}", "classifier.{*x}")),
    **_ALONE,
)
timm_regnet = Layout(
    "timm",
    "",
    "https://huggingface.co/timm",
    "SEER's weights have their own non-commercial license (the SEER license); for others, see the original.",
    mark="s1.b1.",
    pairs=(
        ("stem.{*x}", BACKBONE + "stem.{*x}"),
        ("s{s}.b{b}.{*x}", BACKBONE + "s{s}.b{b}.{*x}"),
        ("head.fc.{*x}", "classifier.{*x}"),
    ),
    **_ALONE,
)
