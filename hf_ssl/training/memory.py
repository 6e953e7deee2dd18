# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Turn out-of-memory errors of a step into a message that says which batch size would fit."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import torch
from accelerate import Accelerator

from ..errors import RunError, UserError
from ..machine import free_memory
from ..recipe import Recipe


@contextmanager
def enough_memory(recipe: Recipe, accelerator: Accelerator) -> Iterator[None]:
    """Context for a training step; raises RunError if it runs out of memory."""
    try:
        yield
        return
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
    # Outside the except block, where the traceback no longer keeps the step's tensors alive.
    train, device = recipe.train, accelerator.device
    parts = accelerator.num_processes * train.accumulation
    forward = train.batch_size // parts
    fits = max(1, min(_fits(recipe, device), forward // 2))
    again = f"train.accumulation={train.accumulation * -(-forward // fits)}"
    raise RunError(
        f"{device} ran out of memory with {forward} images per forward pass; about {fits} would fit: set "
        f"train.batch_size={fits * parts}, or {again} to split the batch, or "
        "train.gradient_checkpointing=true, in another train.output_dir."
    ) from None


def _is_out_of_memory(error: BaseException) -> bool:
    said = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in said


def _fits(recipe: Recipe, device: torch.device) -> int:
    """The largest power of two of images that fits into free memory, as estimated by `hf_ssl.plan`."""
    from ..plan import largest_batch

    found = 2**30
    with suppress(UserError, RuntimeError, MemoryError):  # the estimate can run out of memory too
        free = free_memory(device)
        if device.type == "cuda":
            free += torch.cuda.memory_reserved(device)
        tried = replace(recipe, train=replace(recipe.train, batch_size=32, accumulation=1))
        found = largest_batch(tried, 0.9 * free)
    return 2 ** (max(1, found).bit_length() - 1)
