# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Barlow Twins' loss, forward and backward, with its D x D matrix and without.

`python tests/benchmarks/barlow_loss.py`; CPU seconds of one thread, medians of interleaved repeats.
"""

import statistics
import time

import torch

from hf_ssl.models import barlow_twins_loss


def seconds(z: torch.Tensor, explicit: bool) -> float:
    a, b = (view.clone().requires_grad_() for view in z)
    start = time.process_time()
    barlow_twins_loss(a, b, explicit_matrix=explicit).backward()
    return time.process_time() - start


if __name__ == "__main__":
    torch.set_num_threads(1)
    for batch, width in ((32, 8192), (64, 2048), (128, 512)):
        z = torch.randn(2, batch, width)
        times: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(7):
            for explicit, found in times.items():
                found.append(seconds(z, explicit))
        matrix, without = (statistics.median(found) for found in times.values())
        print(f"batch {batch}, D {width}: {matrix:.4f} s, {without:.4f} s, x {matrix / without:.1f}")
