# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Weight initialization. transformers' `init` functions leave loaded tensors unchanged.

This file ships inside model repositories.
"""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import initialization as init


def init_linear_as_torch(module: nn.Linear) -> None:
    """torch's default: uniform in ±1/sqrt(fan_in) for weight and bias."""
    bound = 1 / math.sqrt(module.in_features)
    init.uniform_(module.weight, -bound, bound)
    if module.bias is not None:
        init.uniform_(module.bias, -bound, bound)


def init_norm(module: nn.Module) -> None:
    """Scale 1, offset 0, running mean 0, running variance 1."""
    if module.weight is not None:
        init.ones_(module.weight)
    if module.bias is not None:
        init.zeros_(module.bias)
    if isinstance(module, _BatchNorm) and module.running_mean is not None:
        init.zeros_(module.running_mean)
        init.ones_(module.running_var)
        init.zeros_(module.num_batches_tracked)


def init_as_torchvision(module: nn.Conv2d) -> None:
    """He et al., fan-out; bias 0."""
    init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    if module.bias is not None:
        init.zeros_(module.bias)


def init_as_timm(module: nn.Conv2d | nn.Linear) -> None:
    """Truncated normal, std 0.02; bias 0."""
    init.trunc_normal_(module.weight, std=0.02)
    if module.bias is not None:
        init.zeros_(module.bias)


def init_remaining(backbone: nn.Module, create: Callable[[], nn.Module]) -> None:
    """Copy the other tensors (tokens, position embeddings, layer scales ...) from a new backbone made by `create`."""
    layers = nn.Conv2d | nn.Linear | _BatchNorm | nn.LayerNorm | nn.GroupNorm
    theirs = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    remaining = {
        f"{prefix}.{name}".lstrip("."): parameter
        for prefix, module in backbone.named_modules()
        for name, parameter in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        if not (isinstance(module, layers) and name in theirs) and not getattr(parameter, "_is_hf_initialized", False)
    }
    if remaining:
        with torch.device("cpu"):
            fresh = create()
        initial = {**dict(fresh.named_parameters()), **dict(fresh.named_buffers())}
        for name, parameter in remaining.items():
            init.copy_(parameter, initial[name].to(parameter.device, parameter.dtype))
