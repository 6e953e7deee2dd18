# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""FSDP2: weights, gradients and optimizer states of a model shared out over processes, whatever its backbone.

Units, inside out, as SEER had them: every BatchNorm, in float32; every layer of 100 million parameters or more; every
residual block; every part of the method (encoder, target, projector, prototypes ..., the prototypes in float32); the
whole. Elsewhere weights are gathered and used in the run's precision, and gradients are summed in float32.

`Accelerator.prepare` is not used for it: it takes its units by class name, knows one precision, and finds the
optimizer's parameters by their address, which empty shards (a short bias on many processes) share.

Weights are made as without FSDP, on the main process, whose host memory holds them once; the others build the model
without memory, and every tensor is then sent and cut on its own. So a seed gives the same weights in every setting.
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
    """Context in which a model is built: under FSDP only the main process gets weights, the others only shapes."""
    elsewhere = accelerator.is_fsdp2 and not accelerator.is_main_process
    return torch.device("meta") if elsewhere else nullcontext()


def shard(model: nn.Module, accelerator: Accelerator) -> None:
    """Share a model, which was built under `build_once`, out over the processes, in place.

    Offloading, resharding and the mesh (HSDP) are those of `accelerate launch`; an optimizer is made afterwards.
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
    # Encoders return views (`flatten`), which no method changes in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    offload = isinstance(plugin.cpu_offload, CPUOffloadPolicy)
    model.to_empty(device="cpu" if offload else accelerator.device)
    set_model_state_dict(model, weights, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))
    if offload:  # only what is sharded waits in host memory
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(accelerator.device))


def fully_shard_units(
    model: nn.Module, mesh: DeviceMesh, precision: str, reshard_after_forward=True, **options
) -> None:
    """`fully_shard` for every unit, with the precision that each is gathered in ("no", "bf16" or "fp16" elsewhere)."""
    half = MixedPrecisionPolicy(param_dtype=HALF.get(precision), reduce_dtype=torch.float32)
    single = MixedPrecisionPolicy(param_dtype=torch.float32, cast_forward_inputs=False)
    if precision == "no":
        half = single = MixedPrecisionPolicy()
    for module in units(model):
        learns = any(parameter.requires_grad for parameter in module.parameters())
        # Small norms stay gathered until their backward pass; a target has none.
        keep = learns and (isinstance(module, _BatchNorm) or not reshard_after_forward)
        policy = single if in_float32(model, module) else half
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=not keep, **options)


def in_float32(model: nn.Module, unit: nn.Module) -> bool:
    return isinstance(unit, _BatchNorm) or unit is getattr(model, "prototypes", None)


def full_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """All tensors of a model, whole; of a sharded one on the main process's CPU and nowhere else (others get {}).

    Every process must call it; a sharded model is gathered tensor by tensor.
    """
    if not is_sharded(model):
        return model.state_dict()
    whole: Any = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return whole


def units(model: nn.Module) -> list[nn.Module]:
    """Modules with parameters of their own to gather, children before their parents, the model last."""
    chosen = {id(model), *map(id, model.children()), *map(id, backbone_blocks(model))}
    for module in model.modules():
        own = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        if isinstance(module, _BatchNorm) or own >= LARGE_LAYER:
            chosen.add(id(module))
    inside_out = reversed(list(model.modules()))
    return [module for module in inside_out if id(module) in chosen and any(True for _ in module.parameters())]


def _reshard_without_backward(model: nn.Module, args, output) -> None:
    """After an evaluation nothing else would: the parameters that a module names are again those of the optimizer."""
    if not torch.is_grad_enabled():
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
