# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Collectives with gradients, and helpers that turn off autocast.

This file ships inside model repositories.
"""

import torch
import torch.distributed as dist


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: torch.Tensor) -> torch.Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> torch.Tensor:
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sum over processes, with gradient.

    Every process computes the same global loss from the sum, and the backward pass sums the gradients of these equal
    losses. Averaging over processes, as DDP and FSDP do, then gives exactly the gradient of one process with the whole
    batch.
    """
    return _AllReduceSum.apply(tensor) if world_size() > 1 else tensor


def all_reduce_mean(tensor: torch.Tensor) -> torch.Tensor:
    """Mean over processes, with gradient."""
    return all_reduce_sum(tensor) / world_size()


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: torch.Tensor) -> torch.Tensor:
        return gather_batch(tensor)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> torch.Tensor:
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(world_size())[rank()]


def all_gather(tensor: torch.Tensor) -> torch.Tensor:
    """(B, ...) from every process -> (W*B, ...) in rank order, with gradient; see `all_reduce_sum`."""
    return _AllGather.apply(tensor) if world_size() > 1 else tensor


@torch.no_grad()
def all_reduce_max(tensor: torch.Tensor) -> torch.Tensor:
    """Elementwise maximum over processes, without gradient."""
    if world_size() > 1:
        tensor = tensor.clone()
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor


@torch.no_grad()
def gather_batch(tensor: torch.Tensor) -> torch.Tensor:
    """(B, ...) from every process -> (W*B, ...) in rank order, without gradient."""
    if world_size() == 1:
        return tensor
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Cast half precision to float32; leave float32 and float64 unchanged."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def full_precision(tensor: torch.Tensor) -> torch.autocast:
    """Context that disables autocast on `tensor`'s device."""
    return torch.autocast(tensor.device.type, enabled=False)
