# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Configure Accelerate and prepare models for it; no other module does.

Devices, the number of processes and, unless the recipe sets it, precision come from `accelerate launch`. This module
adds what self-supervised learning needs: no buffer broadcast, and BatchNorm over all processes, on CPUs too.
"""

import os
from collections.abc import Callable
from inspect import signature
from typing import Any

import timm.layers
import torch
import torch.nn.functional as F
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType, gather_object
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..devices import best_precision, channels_last, on_cpu, process_state
from ..errors import UserError
from ..logs import get_logger
from ..models.distributed_ssl import all_reduce_sum, at_least_float32, world_size
from ..recipe import RecipeError, TrainConfig
from .fsdp import shard


logger = get_logger(__name__)


class _OwnBuffers(DistributedDataParallelKwargs):
    """DDP's options, of which the one for buffers has another name from torch 2.14 on."""

    def to_kwargs(self) -> dict[str, Any]:
        kwargs = super().to_kwargs()
        if "forward_sync_buffers" in signature(nn.parallel.DistributedDataParallel).parameters:
            kwargs["forward_sync_buffers"] = kwargs.pop("broadcast_buffers")
        return kwargs


def build_accelerator(train: TrainConfig) -> Accelerator:
    """An Accelerator for a recipe's `train` section.

    On a machine without an accelerator, all processes train on the CPU, whatever the launch config says.

    Raises:
        RecipeError: an unsupported FSDP setting, or more processes than Accelerate knows of, each of which would
            train on its own.
    """
    # Reset Accelerate's global state so that several recipes can run in one process; the process group stays.
    sharded_before = PartialState._shared_state.get("distributed_type") == DistributedType.FSDP
    AcceleratorState._reset_state(reset_partial_state=sharded_before)  # otherwise FSDP would not be detected again
    GradientState._reset_state()
    process_state()
    alone = on_cpu()
    accelerator = Accelerator(
        cpu=alone,
        mixed_precision=best_precision() if train.precision == "auto" else train.precision,
        log_with=list(train.track) or None,
        project_dir=train.output_dir,
        step_scheduler_with_optimizer=False,
    )
    accelerator.ddp_handler = _OwnBuffers(
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
        find_unused_parameters=train.freeze_backbone_epochs > 0,  # those of the backbone while it is frozen
    )
    if alone:
        sharded = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
        logger.warning(
            f"No accelerator was found; {accelerator.num_processes} processes train on the CPU"
            f"{', each with the whole model instead of an FSDP shard' if sharded else ''}."
        )
    if accelerator.distributed_type != DistributedType.FSDP:
        return accelerator
    if not accelerator.is_fsdp2:
        raise RecipeError(
            "FSDP 1 is not supported; launch with the file from `hf-ssl recipes accelerate/fsdp2 --copy`."
        )
    if accelerator.state.fsdp_plugin.activation_checkpointing:
        raise RecipeError(
            "fsdp_activation_checkpointing would update BatchNorm statistics twice per step; disable it in the "
            "Accelerate configuration and set train.gradient_checkpointing=true."
        )
    if train.freeze_backbone_epochs:
        raise RecipeError(
            "train.freeze_backbone_epochs is not supported with FSDP yet; set it to 0, or launch with DDP."
        )
    if train.compile:
        raise RecipeError("train.compile is not supported with FSDP yet; set train.compile=false.")
    return accelerator


def fit_model(model: nn.Module, train: TrainConfig, accelerator: Accelerator) -> nn.Module:
    """Apply memory format, synchronized BatchNorm, checkpointing and compilation, in this order, before `prepare`.

    FSDP shards only contiguous weights, so they are not converted. Inputs are channels_last anyway, and convolutions
    follow the inputs.
    """
    if train.channels_last and not accelerator.is_fsdp2:
        channels_last(model)
    if train.sync_batchnorm and accelerator.num_processes > 1:
        model = synchronize_batchnorm(model, accelerator.device)
    if train.gradient_checkpointing:
        encoder: Any = model.get_submodule("encoder")
        encoder.gradient_checkpointing = True  # not transformers' own switch, which version 6 renames
    if train.compile:
        for child in model.children():  # encoders and heads; the losses stay eager
            child.compile()
    return model


def prepare(
    model: nn.Module, make_optimizer: Callable[[nn.Module], torch.optim.Optimizer], accelerator: Accelerator
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The model to call in training (wrapped by DDP, or sharded in place), and its optimizer."""
    if accelerator.is_fsdp2:
        shard(model, accelerator)
        return model, accelerator.prepare_optimizer(make_optimizer(model), device_placement=False)
    return accelerator.prepare(model, make_optimizer(model))


def synchronize_batchnorm(model: nn.Module, device: torch.device) -> nn.Module:
    """Make every BatchNorm of `model` use the statistics of the global batch.

    On GPUs this is torch's SyncBatchNorm. timm's converter keeps the activation inside timm's BatchNormAct2d. torch's
    class does not support CPU tensors, so CPU processes use the class below.
    """
    model = timm.layers.convert_sync_batchnorm(model)
    if device.type == "cpu":
        for module in model.modules():
            with_act = isinstance(module, timm.layers.norm_act.SyncBatchNormAct)
            if with_act or type(module) is nn.SyncBatchNorm:
                module.__class__ = CpuSyncBatchNormAct if with_act else CpuSyncBatchNorm
    return model


class CpuSyncBatchNorm(_BatchNorm):
    """BatchNorm over the global batch, with autograd through two all-reduces. (B, C, ...) -> same shape."""

    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor
    momentum: float

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        dims = [0, *range(2, x.dim())]
        shape = [1, -1] + [1] * (x.dim() - 2)
        count = x.numel() // x.shape[1] * world_size()
        values = at_least_float32(x)
        mean = all_reduce_sum(values.sum(dims)) / count  # (C,)
        centered = values - mean.view(shape)
        var = all_reduce_sum((centered * centered).sum(dims)) / count
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean.detach(), self.momentum)
        self.running_var.lerp_(var.detach() * count / max(count - 1, 1), self.momentum)
        out = centered * torch.rsqrt(var + self.eps).view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(x.dtype)


class CpuSyncBatchNormAct(CpuSyncBatchNorm):
    """The same, followed by timm's drop and activation."""

    drop: nn.Module
    act: nn.Module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.drop(super().forward(x)))


def on_main(accelerator: Accelerator, call: Callable[[], object]) -> None:
    """Call a function on the main process only; every process must call this.

    Raises:
        UserError: raised by the function, then re-raised on all processes, so that none waits forever.
    """
    error = None
    if accelerator.is_main_process:
        try:
            call()
        except UserError as raised:
            error = raised
    said = gather_object([error and str(error)])[0]
    if said:
        raise error or UserError(said)
