# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""FSDP2: shard weights, gradients and optimizer states of a model with any backbone.

Units, from the inside out, as in SEER: every BatchNorm, in float32; every layer of at least 100 million parameters;
every residual block; every part of the method (encoder, target, projector, prototypes ...; prototypes in float32); the
whole model. All other weights are gathered and used in the run's precision, and gradients are reduced in float32.

`Accelerator.prepare` does not fit: it selects units by class name, supports one precision only, and identifies the
optimizer's parameters by address, which is the same for all empty shards (a short bias on many processes).

The main process initializes the full model in host memory, as without FSDP. The others build it on the meta device,
and then each tensor is broadcast and sharded on its own. So a seed gives the same weights in every setting.
"""

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.modules.batchnorm import _BatchNorm

from ..models.backbones_ssl import backbone_blocks


LARGE_LAYER = 100_000_000  # parameters
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule)


def build_once(accelerator: Accelerator) -> AbstractContextManager:
    """Context for building a model: under FSDP, only the main process allocates weights; others use "meta"."""
    elsewhere = accelerator.is_fsdp2 and not accelerator.is_main_process
    return torch.device("meta") if elsewhere else nullcontext()


def shard(model: nn.Module, accelerator: Accelerator) -> None:
    """Shard a model built under `build_once`, in place. Create the optimizer afterwards.

    Offloading, resharding and the mesh (HSDP) are configured by `accelerate launch`.
    """
    plugin, mesh = accelerator.state.fsdp_plugin, accelerator.torch_device_mesh
    if mesh is None:
        mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    else:
        mesh = mesh[tuple(accelerator.parallelism_config.fsdp_dim_names)]
    weights = model.state_dict() if accelerator.is_main_process else {}
    model.to("meta")
    fully_shard_units(
        model,
        mesh,
        accelerator.mixed_precision,
        reshard_after_forward=plugin.reshard_after_forward,
        offload_policy=plugin.cpu_offload,
    )
    model.register_forward_hook(_reshard_without_backward)
    # Encoders return views (`flatten`), but no method modifies them in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    offload = isinstance(plugin.cpu_offload, CPUOffloadPolicy)
    model.to_empty(device="cpu" if offload else accelerator.device)
    set_model_state_dict(model, weights, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))
    if offload:  # only sharded tensors are offloaded; buffers belong on the device
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(accelerator.device))


def fully_shard_units(
    model: nn.Module, mesh: DeviceMesh, precision: str, reshard_after_forward=True, **options
) -> None:
    """`fully_shard` every unit; `precision` is "no", "bf16" or "fp16", for units not kept in float32."""
    half = MixedPrecisionPolicy(param_dtype=HALF.get(precision), reduce_dtype=torch.float32)
    single = MixedPrecisionPolicy(param_dtype=torch.float32, cast_forward_inputs=False)
    if precision == "no":
        half = single = MixedPrecisionPolicy()
    for module in units(model):
        learns = any(parameter.requires_grad for parameter in module.parameters())
        # BatchNorms are small and stay gathered until backward; a frozen target has no backward.
        keep = learns and (isinstance(module, _BatchNorm) or not reshard_after_forward)
        policy = single if in_float32(model, module) else half
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=not keep, **options)


def in_float32(model: nn.Module, unit: nn.Module) -> bool:
    return isinstance(unit, _BatchNorm) or unit is getattr(model, "prototypes", None)


def full_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """The full state dict. For a sharded model, only the main process gets it, on the CPU; the others get {}.

    Every process must call it. A sharded model is gathered tensor by tensor.
    """
    if not is_sharded(model):
        return model.state_dict()
    whole: Any = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return whole


def units(model: nn.Module) -> list[nn.Module]:
    """Modules to shard as units, children before their parents, the model last."""
    chosen = {id(model), *map(id, model.children()), *map(id, backbone_blocks(model))}
    for module in model.modules():
        own = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        if isinstance(module, _BatchNorm) or own >= LARGE_LAYER:
            chosen.add(id(module))
    inside_out = reversed(list(model.modules()))
    return [module for module in inside_out if id(module) in chosen and any(True for _ in module.parameters())]


def _reshard_without_backward(model: nn.Module, args, output) -> None:
    """Reshard after an evaluation, because without a backward pass the parameters would stay unsharded."""
    if not torch.is_grad_enabled():
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
