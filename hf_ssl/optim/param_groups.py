# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Parameter groups: which parameters are optimized, with which learning rate and weight decay, by name and shape."""

from typing import Any

import timm.optim
import torch
from torch import nn

from ..recipe import OptimConfig
from .larc import Larc, Lars


def param_groups(model: nn.Module, optim: OptimConfig, batch_size: int) -> list[dict[str, Any]]:
    """Parameter groups of a model, with `peak_lr`, `fixed_lr` and `weight_decay`.

    Names that start with `target_` are never optimized, whatever their `requires_grad`. One-dimensional tensors
    (biases and norms) get their own groups if the recipe treats them differently, and so do the predictor
    and, with `layer_decay`, each layer of the backbone.

    Args:
        batch_size: global batch size, which scales learning rates given per `lr_per` images.
    """
    scale = batch_size / optim.lr_per if optim.lr_per else 1.0
    apart = optim.exclude_bias_and_norm or optim.lr_bias_and_norm is not None
    depth = _layer_scales(model, optim.layer_decay)
    groups: dict[tuple[bool, bool, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if name.startswith("target_") or not parameter.requires_grad:
            continue
        fixed = optim.fixed_predictor_lr and name.startswith("predictor.")
        key = (apart and parameter.ndim <= 1, fixed, depth.get(name, 1.0))
        groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "peak_lr": layer * scale * _lr(optim, vector),
            "lr": layer * scale * _lr(optim, vector),
            "fixed_lr": fixed,
            "weight_decay": 0.0 if vector and optim.exclude_bias_and_norm else optim.weight_decay,
            "excluded": vector and optim.exclude_bias_and_norm,
        }
        for (vector, fixed, layer), parameters in groups.items()
    ]


def _layer_scales(model: nn.Module, decay: float | None) -> dict[str, float]:
    """Learning rate scale of every encoder parameter, by name, with timm's layer grouping."""
    if decay is None:
        return {}
    backbone: Any = model.get_submodule("encoder.backbone")
    names = {parameter: f"encoder.backbone.{name}" for name, parameter in backbone.named_parameters()}
    groups = timm.optim.param_groups_layer_decay(backbone, layer_decay=decay)
    return {names[parameter]: group["lr_scale"] for group in groups for parameter in group["params"]}


def _lr(optim: OptimConfig, vector: bool) -> float:
    return optim.lr_bias_and_norm if vector and optim.lr_bias_and_norm is not None else optim.lr


def build_optimizer(model: nn.Module, optim: OptimConfig, batch_size: int) -> torch.optim.Optimizer:
    """The recipe's optimizer over `param_groups`."""
    groups = param_groups(model, optim, batch_size)
    if optim.name == "sgd":
        return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum)
    if optim.name == "adam":
        return torch.optim.Adam(groups, lr=optim.lr, betas=optim.betas)
    if optim.name == "adamw":
        return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas)
    layerwise = {"lars": Lars, "larc": Larc}[optim.name]
    return layerwise(groups, lr=optim.lr, momentum=optim.momentum, trust_coefficient=optim.trust_coefficient)
