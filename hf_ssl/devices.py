# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Launched processes, and the best precision and memory layout for the machine."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from accelerate.state import PartialState
from torch import nn

from .errors import RecipeError


CPU_FLAGS = Path("/proc/cpuinfo")  # Linux only


def on_cpu() -> bool:
    """Whether several processes were launched on a machine with CPUs only, whatever the launch config says."""
    several = int(os.environ.get("WORLD_SIZE", "0")) > 1  # set by every multi-process launcher
    return several and not torch.accelerator.is_available() and "ACCELERATE_TORCH_DEVICE" not in os.environ


def has_gpu() -> bool:
    """Whether a run here is on an accelerator, as far as can be told before it starts."""
    told = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    return torch.accelerator.is_available() and not told


def process_state() -> PartialState:
    """Initialize the process group.

    Raises:
        RecipeError: Accelerate found fewer processes than were launched; each would train on its own.
    """
    state = PartialState(cpu=on_cpu() or None)
    launched = int(os.environ.get("WORLD_SIZE", "0"))
    if launched and state.num_processes != launched:
        raise RecipeError(
            f"{launched} processes were launched, but Accelerate sees {state.num_processes}, so they would run "
            "independently. Launch with ddp.yaml (`hf-ssl recipes accelerate/ddp --copy`) or with --num_processes 1."
        )
    return state


def best_precision() -> Any:
    """Value of `train.precision=auto` on this machine: bf16 if the hardware multiplies bf16 matrices, else "no".

    `accelerate launch` takes precedence; None if its precision is not one that a recipe can name.
    """
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION")
    if launched is not None:
        return launched if launched in ("no", "fp16", "bf16") else None
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is None:
        with suppress(OSError):
            return "bf16" if "amx_bf16" in CPU_FLAGS.read_text() else "no"
        return "no"
    module = torch.get_device_module(device)
    emulated = {"including_emulation": False} if device.type == "cuda" else {}
    return "bf16" if getattr(module, "is_bf16_supported", lambda: False)(**emulated) else "no"


def channels_last(model: nn.Module) -> nn.Module:
    """Convert the weights of 2-D convolutions to channels_last, in place."""
    for parameter in model.parameters():
        if parameter.ndim == 4:  # `Module.to` raises for models that also have 3-D convolutions
            # `contiguous` would leave 1x1 convolutions as they are, whose gradients then have other strides.
            parameter.data = torch.empty_like(parameter, memory_format=torch.channels_last).copy_(parameter.data)
    return model
