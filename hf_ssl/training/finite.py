# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Check that a model and its optimizer state are still finite."""

from collections.abc import Iterator

import torch
from torch import nn


_LARGEST = torch.finfo(torch.float32).max ** 0.5
_FEW = 8  # examples
_MEASURED = ("pixel_values", "pixel_values_videos", "input_values")


@torch.no_grad()
def all_finite(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> bool:
    """Whether every weight, buffer and optimizer state of this process has a finite square in float32.

    Synchronizes with the device.
    """
    norms: list[torch.Tensor] = []
    by_kind: dict[tuple, list[torch.Tensor]] = {}
    for tensor in _floats(model, optimizer):
        by_kind.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    for (device, _), tensors in by_kind.items():
        # The maximum norm takes one fused pass, does not overflow, and propagates NaN.
        norms.append(nn.utils.get_total_norm(tensors, norm_type=float("inf")).float().to(device))
    return all(bool(norm <= _LARGEST) for norm in norms)


@torch.no_grad()
def features_finite(model: nn.Module, inputs: dict[str, torch.Tensor]) -> bool:
    """Whether a few examples of the last batch have finite features in evaluation mode.

    The last step can leave finite weights whose outputs are not finite. Every process must call it.
    """
    few = {key: value[:_FEW] for key, value in inputs.items() if key in _MEASURED}
    if "pixel_values" in few:
        few["pixel_values"] = few["pixel_values"][:, 0]  # the first view
    training = model.training
    model.eval()
    try:
        return bool(model(**few).features.isfinite().all())
    finally:
        model.train(training)


def _floats(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> Iterator[torch.Tensor]:
    yield from (t for t in map(_local, model.state_dict().values()) if t.is_floating_point() and t.numel())
    for state in optimizer.state.values() if optimizer is not None else ():
        for value in state.values():
            if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel():
                yield _local(value)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's shard of a tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
