# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""timm backbones for the methods: stem, padding, and activation checkpointing of blocks.

This file ships inside model repositories, so it imports from its siblings only.
"""

import difflib
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import MethodType
from typing import Any

import timm
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig

from .configuration_ssl import SSLConfig


def check_backbone(backbone: str) -> None:
    """Raise ValueError if timm has no such backbone; the message suggests similar names."""
    name = timm.models.split_model_name_tag(backbone)[0]
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(close)}?" if close else "; timm.list_models() has the names."
        raise ValueError(f"timm has no backbone {backbone!r}{hint}")


def rebuildable_by_timm(config: PreTrainedConfig) -> bool:
    """Whether `timm.create_model` can rebuild the encoder from its name and arguments alone."""
    if not isinstance(config, SSLConfig):
        return False
    return (config.stem, config.padding, config.first_shortcut) == ("imagenet", "torch", "identity")


def backbone_kwargs(config: SSLConfig) -> dict[str, Any]:
    """Arguments of `timm.create_model`, except the name and `num_classes=0`."""
    kwargs = dict(config.backbone_args or {})
    if config.num_channels != 3:
        kwargs["in_chans"] = config.num_channels
    return kwargs


def timm_fields(name: str, model: nn.Module) -> dict[str, Any]:
    """Fields of `SSLConfig` that describe timm's pretrained `name` and its image input."""
    place, inside = timm.models.parse_model_name(name)
    arguments = {}
    if place == "hf-hub":
        arguments = timm.models.load_model_config_from_hf(inside)[2] or {}
    elif place == "local-dir":
        arguments = json.loads(Path(inside, "config.json").read_text()).get("model_args", {})
    arguments = {k: v for k, v in arguments.items() if k not in ("num_classes", "in_chans")}
    facts = model.pretrained_cfg
    return {
        "backbone": facts["architecture"],
        "backbone_args": arguments or None,
        "image_size": facts["input_size"][-1],
        "num_channels": facts["input_size"][0],
        "image_mean": tuple(facts["mean"]),
        "image_std": tuple(facts["std"]),
        "crop_pct": facts["crop_pct"],
        "interpolation": facts["interpolation"] if facts["interpolation"] in ("bilinear", "bicubic") else "bicubic",
    }


def create_backbone(config: SSLConfig) -> nn.Module:
    """The bare timm model without a classifier, with the configured stem, padding and first shortcut.

    Raises:
        ValueError: unknown backbone, or arguments, stem or shortcut that it does not support.
    """
    check_backbone(config.backbone)
    if (config.backbone_args or {}).get("in_chans", config.num_channels) != config.num_channels:
        raise ValueError("backbone_args must not contain in_chans; use num_channels (1 or 3 for images).")
    try:
        backbone = timm.create_model(config.backbone, pretrained=False, num_classes=0, **backbone_kwargs(config))
    except (TypeError, AssertionError) as error:  # timm asserts that a RegNet has four stages
        said = str(error) or "timm cannot build a network from them"
        raise ValueError(f"backbone_args do not fit {config.backbone}: {said}.") from error
    if config.stem == "wide":
        _widen_stem(backbone, config)
    elif config.stem != "imagenet":
        _make_stem_small(backbone, config)
    if config.first_shortcut == "projection":
        _project_first_shortcut(backbone, config)
    if config.padding == "same":
        _use_same_padding(backbone)
    return backbone


def load_backbone(backbone: nn.Module, tensors: dict[str, torch.Tensor], source: str) -> None:
    """Load all of the pretrained tensors of `source`.

    Raises:
        ValueError: tensors are missing, unexpected or of the wrong shape; the message names them.
    """
    ours = backbone.state_dict()
    wrong = sorted(k for k in ours.keys() | tensors.keys() if k not in ours or k not in tensors)
    wrong += [k for k in ours.keys() & tensors.keys() if ours[k].shape != tensors[k].shape]
    if wrong:
        shown = ", ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        name = backbone.pretrained_cfg.get("architecture", "the backbone")
        raise ValueError(
            f"The weights of {source} do not fit {name} as configured (including stem, padding and backbone_args): "
            f"{shown}."
        )
    backbone.load_state_dict(tensors)


def _make_stem_small(backbone: nn.Module, config: SSLConfig) -> None:
    modules = dict(backbone.named_children())
    if "conv1" in modules and "maxpool" in modules:  # ResNet
        first = backbone.conv1
        if isinstance(first, nn.Conv2d):
            backbone.conv1 = nn.Conv2d(first.in_channels, first.out_channels, 3, padding=1, bias=False)
        else:  # deep stem of three convolutions
            first[0].stride = (1, 1)
        backbone.maxpool = nn.Identity()
        if config.stem == "small_linear":
            backbone.act1 = nn.Identity()
    elif "stem" in modules and "s1" in modules and config.stem == "small":  # RegNet
        backbone.stem.conv.stride = (1, 1)
    else:
        raise ValueError(
            f"stem={config.stem!r} is for ResNets (and 'small' for RegNets), not for {config.backbone}; "
            "use its backbone_args instead."
        )


def _widen_stem(backbone: nn.Module, config: SSLConfig) -> None:
    block = backbone.layer1[0] if hasattr(backbone, "layer1") else None
    if getattr(block, "conv3", None) is None or not isinstance(backbone.conv1, nn.Conv2d):
        raise ValueError(f"stem='wide' is for bottleneck ResNets (50 layers or more), not for {config.backbone}.")
    width = block.conv1.out_channels
    backbone.conv1 = nn.Conv2d(backbone.conv1.in_channels, width, 7, stride=2, padding=3, bias=False)
    backbone.bn1 = nn.BatchNorm2d(width)
    block.conv1 = nn.Conv2d(width, width, 1, bias=False)
    block.downsample[0] = nn.Conv2d(width, block.conv3.out_channels, 1, bias=False)


def _project_first_shortcut(backbone: nn.Module, config: SSLConfig) -> None:
    block = backbone.layer1[0] if hasattr(backbone, "layer1") else None
    if not isinstance(getattr(block, "conv1", None), nn.Conv2d):
        raise ValueError(f"first_shortcut='projection' is for ResNets, not for {config.backbone}.")
    if block.downsample is None:
        channels = block.conv1.in_channels
        convolution = nn.Conv2d(channels, channels, 1, bias=False)
        block.downsample = nn.Sequential(convolution, nn.BatchNorm2d(channels))


def _use_same_padding(backbone: nn.Module) -> None:
    for parent in list(backbone.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Conv2d and child.stride[0] > 1 and child.kernel_size[0] > 1:
                same = timm.layers.Conv2dSame(
                    child.in_channels,
                    child.out_channels,
                    child.kernel_size,
                    child.stride,
                    groups=child.groups,
                    bias=child.bias is not None,
                )
                setattr(parent, name, same)
            elif type(child) is nn.MaxPool2d:
                setattr(parent, name, timm.layers.pool2d_same.MaxPool2dSame(child.kernel_size, child.stride))


def backbone_blocks(backbone: nn.Module) -> list[nn.Module]:
    """The backbone's outermost residual blocks: the units of activation checkpointing."""
    blocks: list[nn.Module] = []
    inside: set[int] = set()
    for module in backbone.modules():
        kind = type(module).__name__
        if id(module) not in inside and (
            kind == "Block" or kind.endswith(("Block", "Bottleneck", "InvertedResidual"))
        ):
            blocks.append(module)
            inside.update(id(child) for child in module.modules())
    return blocks


@contextmanager
def _frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Stop BatchNorm from updating running statistics while a checkpointed block is recomputed."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.num_batches_tracked is not None]
    saved = [(norm, norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, tracked in saved:
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(tracked)


def use_checkpointing(blocks: list[nn.Module], enable: bool) -> None:
    """Turn activation checkpointing of the blocks on or off."""
    for block in blocks:
        if enable:
            block.forward = MethodType(checkpointed_forward, block)
        else:
            block.__dict__.pop("forward", None)


def checkpointed_forward(block: nn.Module, *args, **kwargs):
    """Replaces `block.forward`; a bound method, so that a deep copy of the model runs its own blocks."""
    plain = type(block).forward.__get__(block)
    if not torch.is_grad_enabled():
        return plain(*args, **kwargs)
    contexts = lambda: (nullcontext(), _frozen_statistics(block))  # noqa: E731
    return checkpoint(plain, *args, use_reentrant=False, context_fn=contexts, **kwargs)
