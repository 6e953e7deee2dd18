# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""LARC (SwAV, SEER) and LARS (Barlow Twins, BYOL): SGD with steps scaled by the norm of each parameter.

LARC: g <- (g + wd p) * trust |p| / (|g| + wd |p| + eps), for all tensors, including biases and norms; if |p| or |g| is
0, the gradient is left unchanged, without weight decay. LARS divides by |g + wd p| and skips groups marked `excluded`.
timm's Lars uses LARC's denominator, so its steps differ from those of the two papers' code.
"""

import torch
from torch.distributed.tensor import DTensor, Partial
from torch.optim import Optimizer


class Larc(Optimizer):
    """SGD with momentum after LARC scaling (no clipping).

    Args:
        params: parameters or groups; parameters without a gradient are skipped, including their momentum.
        lr: learning rate.
        momentum: SGD momentum; the buffer starts as the first gradient.
        weight_decay: applied inside the scaling.
        trust_coefficient: step size at lr 1, as a fraction of the parameter's norm.
        eps: added to the denominator.
    """

    def __init__(
        self,
        params,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        eps: float = 1e-8,
    ):
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "trust_coefficient": trust_coefficient, "eps": eps})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._step_group(group, params, [p.grad for p in params])
        return loss

    def _step_group(self, group: dict, params: list[torch.Tensor], grads: list[torch.Tensor]) -> None:
        scaled = self._scaled_gradients(group, params, grads)
        buffers = []
        for p, g in zip(params, scaled, strict=True):
            state = self.state[p]
            if "momentum_buffer" in state:
                state["momentum_buffer"].mul_(group["momentum"]).add_(g)
            else:
                state["momentum_buffer"] = g.clone()
            buffers.append(state["momentum_buffer"])
        torch._foreach_add_(params, buffers, alpha=-group["lr"])

    def _scaled_gradients(
        self, group: dict, params: list[torch.Tensor], grads: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Must not synchronize the device."""
        decay = group["weight_decay"]
        p_norms, g_norms = _norms(params), _norms(grads)
        scaled = []
        for p, g, p_norm, g_norm in zip(params, grads, p_norms, g_norms, strict=True):
            trust = group["trust_coefficient"] * p_norm / (g_norm + decay * p_norm + group["eps"])
            usable = (p_norm > 0) & (g_norm > 0)
            scaled.append(g.add(p, alpha=decay).mul_(trust).where(usable, g))
        return scaled


def _norms(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Norms of whole tensors, including sharded ones, with a single all-reduce."""
    if not isinstance(tensors[0], DTensor):
        return list(torch._foreach_norm(tensors))
    placements = [Partial() if placement.is_shard() else placement for placement in tensors[0].placements]
    shards = [tensor.to_local() for tensor in tensors if isinstance(tensor, DTensor)]
    squares = torch.stack(torch._foreach_norm(shards)).square()
    return list(DTensor.from_local(squares, tensors[0].device_mesh, placements).full_tensor().sqrt().unbind())


class Lars(Larc):
    """LARS as in Barlow Twins and BYOL; groups with `excluded=True` get plain SGD without weight decay."""

    def _scaled_gradients(
        self, group: dict, params: list[torch.Tensor], grads: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        if group.get("excluded", False):
            return grads
        decayed = list(torch._foreach_add(grads, params, alpha=group["weight_decay"]))
        p_norms, d_norms = _norms(params), _norms(decayed)
        for p_norm, d, d_norm in zip(p_norms, decayed, d_norms, strict=True):
            trust = group["trust_coefficient"] * p_norm / d_norm
            d.mul_(torch.where((p_norm > 0) & (d_norm > 0), trust, 1.0))
        return decayed
