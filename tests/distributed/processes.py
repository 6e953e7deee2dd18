# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Runs a function on several gloo processes with a deadline, so that a deadlock fails instead of hanging."""

import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.runs import server


COLLECTIVE_SECONDS = 20


def run_on_ranks(function: Callable[[], Any], world_size: int, folder: Path, deadline: float = 60) -> list[Any]:
    """The results of `function()` on all ranks, in order.

    Args:
        function: importable by name; returns tensors in dictionaries and lists.
        folder: empty folder for the output of the processes.
        deadline: in seconds; then ranks still running are killed.

    Raises:
        AssertionError: a rank failed or missed the deadline; with the tracebacks of all failed ranks.
    """
    context = server()
    ranks = [
        context.Process(target=_run, args=(function, rank, world_size, str(folder)), daemon=True)
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    end = time.monotonic() + deadline
    for process in ranks:
        process.join(max(0.0, end - time.monotonic()))
    late = [rank for rank, process in enumerate(ranks) if process.is_alive()]
    for process in ranks:
        process.kill()
        process.join()
    errors = "\n".join(path.read_text() for path in sorted(folder.glob("*.error")))
    assert not late, f"ranks {late} of {world_size} were not done after {deadline} s.\n{errors}"
    codes = [process.exitcode for process in ranks]
    assert codes == [0] * world_size, f"exit codes of the ranks: {codes}.\n{errors}"
    return [torch.load(folder / f"{rank}.pt") for rank in range(world_size)]


def _run(function: Callable[[], Any], rank: int, world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/rendezvous",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=COLLECTIVE_SECONDS),
        )
        torch.save(function(), f"{folder}/{rank}.pt")
        dist.destroy_process_group()
    except BaseException:
        Path(f"{folder}/{rank}.error").write_text(f"rank {rank} of {world_size}:\n{traceback.format_exc()}")
        raise


def share(batch: torch.Tensor, dim: int = 0) -> torch.Tensor:
    """This rank's part of a global batch; the whole batch if not distributed."""
    return batch.chunk(dist.get_world_size(), dim)[dist.get_rank()] if dist.is_initialized() else batch


def mean_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """Average over ranks, as DDP does with gradients."""
    if dist.is_initialized():
        tensor = tensor.clone()
        dist.all_reduce(tensor)
        tensor /= dist.get_world_size()
    return tensor
