# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Estimate what one process of a run needs, by simulating a step on tensors that have shapes but no memory.

torch's memory tracker follows one forward and backward pass of the recipe's model, sharded by FSDP2 as in training,
under FakeTensorMode and a fake process group. Shard sizes, which depend on the number of processes, are computed from
shapes, so the simulation itself always runs on two fake processes.

Not included: memory of CUDA, NCCL and cuDNN, fragmentation, and the loader's host memory. The simulated device is a
CPU, whose BatchNorm saves the same tensors as SyncBatchNorm on a GPU.
"""

import math
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from .data.modality import modality_of
from .data.views import View
from .devices import best_precision
from .methods import method_classes, without_memory
from .recipe import Recipe, RecipeError
from .resolve import resolve
from .training.choices import stand_in
from .training.fsdp import HALF, fully_shard_units, in_float32, units


GIB = 2**30
_SIMULATED = 2  # simulated processes
_STATES = {"adam": 2, "adamw": 2}  # optimizer tensors per parameter; others keep one
_SMALL_NORM_BATCH = 32


def plan(
    recipe: Recipe,
    processes: int,
    *,
    precision: str = "bf16",
    memory: float | None = None,
    images_per_second: float | None = None,
) -> dict[str, Any]:
    """Memory, traffic and time per process under FSDP2 (no sharding for one process), as plain data.

    Args:
        precision: "bf16", "fp16" or "no"; the recipe's own setting takes precedence.
        memory: bytes per device; adds the largest batch that fits.
        images_per_second: over all processes; adds the recipe's duration in hours.

    Raises:
        RecipeError: impossible values, here or in the recipe.
    """
    if processes < 1:
        raise RecipeError(f"--processes must be at least 1, not {processes}.")
    recipe = stand_in(recipe)
    precision = recipe.train.precision if recipe.train.precision not in ("auto", None) else precision
    views, config = (resolved := resolve(recipe)).views, resolved.config
    if getattr(config, "num_instances", None) == 0:
        if recipe.data.num_examples is None:
            raise RecipeError("The memories have one row per clip; set data.num_examples to the number of clips.")
        config.num_instances = recipe.data.num_examples
    model = without_memory(method_classes(recipe.method)[1], config)
    notes = _warnings(recipe, model, processes)
    batch = max(1, recipe.train.batch_size // (processes * recipe.train.accumulation))

    shards = _shard_bytes(model, recipe, processes)
    need, calls = _need(recipe, config, views, batch, shards, processes, precision)
    count = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    result = {
        "processes": processes,
        "batch_per_process": batch,
        "precision": precision,
        "parameters": count,
        "encoder_parameters": sum(p.numel() for p in model.encoder.parameters()),
        "state_gib_of_all_processes": 4 * (count + trained * (1 + _STATES.get(recipe.optim.name, 1))) / GIB,
        "gib": {name: value / GIB for name, value in need.items()},
        "traffic_gib_per_step": _traffic(model, calls, processes, precision, recipe.train.accumulation) / GIB,
        "warnings": notes,
    }
    if memory is not None:
        more, _ = _need(recipe, config, views, 2 * batch, shards, processes, precision)
        per_image = (more["forward and backward"] - need["forward and backward"]) / batch
        fits = math.floor(batch + (memory - need["forward and backward"]) / per_image)
        result["memory_gib"] = memory / GIB
        result["largest_batch_per_process"] = max(0, fits) if need["optimizer's step"] <= memory else 0
        if need["peak"] > memory:
            notes.append(f"A batch of {batch} per process does not fit {memory / GIB:.0f} GiB.")
    if images_per_second is not None:
        images = _images(recipe)
        if images is None:
            notes.append("The duration is unknown; set train.steps, or data.num_examples with train.epochs.")
        else:
            result |= {"images_per_second": images_per_second, "hours": images / images_per_second / 3600}
    return result


def largest_batch(recipe: Recipe, memory: float) -> int:
    """Largest number of images per forward and backward pass that fits `memory` bytes of a process, by simulation."""
    return plan(recipe, 1, precision="no", memory=memory)["largest_batch_per_process"]


def _images(recipe: Recipe) -> float | None:
    """Total number of images shown during a run, or None if unknown."""
    train, num_examples = recipe.train, recipe.data.num_examples
    if train.steps is not None:
        return train.steps * train.batch_size
    return None if num_examples is None else train.epochs * num_examples


def table(result: dict[str, Any]) -> str:
    """Format a plan as a table."""
    gib = result["gib"]
    precision = result["precision"] if result["precision"] in HALF else "float32"
    lines = [
        f"One of {result['processes']} process(es), {result['batch_per_process']} images each, {precision}",
        "",
        f"parameters            {result['parameters'] / 1e6:12,.2f} M",
        f"  encoder             {result['encoder_parameters'] / 1e6:12,.2f} M",
        f"total training state  {result['state_gib_of_all_processes']:12.2f} GiB  in float32",
        "",
        "per process, at the peak of the forward and backward pass",
    ]
    lines += [f"  {name:20}{gib[name]:12.2f} GiB" for name in gib]
    lines += ["", f"sent per step         {result['traffic_gib_per_step']:12.2f} GiB  and as much received"]
    if "largest_batch_per_process" in result:
        fits = f"in {result['memory_gib']:.0f} GiB"
        lines.append(f"largest batch         {result['largest_batch_per_process']:12,} per process, {fits}")
    if "hours" in result:
        rate = f"at {result['images_per_second']:,.0f} images/s in total"
        lines.append(f"time                  {result['hours']:12,.1f} hours {rate}")
    lines += [f"warning: {note}" for note in result["warnings"]]
    return "\n".join(lines)


def this_machine() -> tuple[int, float, str]:
    """Processes on this machine (one per GPU, or one on the CPU), bytes of memory of each, and precision of `auto`."""
    precision = best_precision() or "no"
    if not torch.cuda.is_available():
        return max(1, torch.accelerator.device_count()), psutil.virtual_memory().total, precision
    devices = range(torch.cuda.device_count())
    return len(devices), min(torch.cuda.get_device_properties(i).total_memory for i in devices), precision


def parse_memory(text: str) -> float:
    """ "80GiB", "80GB" or "80" (GiB) -> bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(GiB|GB|)", text, flags=re.IGNORECASE)
    if not match:
        raise RecipeError(f"--memory {text!r} is not a size; use a value such as 80GiB.")
    return float(match[1]) * (1e9 if match[2].lower() == "gb" else GIB)


def _need(recipe, config, views: list[View], batch: int, shards, processes: int, precision: str) -> tuple:
    """Bytes by kind on one of `processes` once the optimizer has its state, and how often each module is called.

    The kinds describe the peak of the forward and backward pass; the optimizer step, which scales the gradients into a
    copy, can need more.
    """
    seen = _simulate(recipe, config, views, batch, min(processes, _SIMULATED), precision)
    kinds = {
        "parameters": shards["parameters"],
        "gradients": shards["gradients"] * seen["gradient_share"],  # the part allocated at the peak
        "optimizer": shards["optimizer"],
        "gathered": seen["gathered"],
        "activations": seen["activations"],
        "buffers and images": seen["rest"],
    }
    both = sum(kinds.values())
    step = shards["parameters"] + 2 * shards["gradients"] + shards["optimizer"] + seen["rest"]
    return {**kinds, "forward and backward": both, "optimizer's step": step, "peak": max(both, step)}, seen["calls"]


def _simulate(recipe: Recipe, config, views: list[View], batch: int, world: int, precision: str) -> dict[str, float]:
    with torch.device("meta"):
        model = method_classes(recipe.method)[1](config).train()
    with warnings.catch_warnings(), _fake_processes(world) as mesh, FakeTensorMode(allow_non_fake_inputs=True):
        warnings.simplefilter("ignore")
        if recipe.train.gradient_checkpointing:
            model.encoder.gradient_checkpointing = True
        if world > 1:
            fully_shard_units(model, mesh, precision)
        else:
            track_frozen(model)
        model.to_empty(device="cpu")
        shapes = modality_of(config).input_shapes(views, batch, config)
        inputs = [torch.empty(shape, dtype=dtype) for shape, dtype in shapes.values()]
        model.before_simulation()
        tracker = FSDPMemTracker(model) if world > 1 else MemTracker()
        if world > 1:
            tracker.track_inputs(tuple(inputs))
        else:
            tracker.track_external(model, *inputs)
        # FSDP gathers weights in the run's precision, so training uses autocast only for unsharded models.
        half = torch.autocast("cpu", HALF.get(precision), enabled=world == 1 and precision in HALF)
        calls: Counter[str] = Counter()
        for name, child in model.named_children():
            child.register_forward_pre_hook(lambda *_, name=name: calls.update([name]))
        with tracker:
            with half:
                output = model(*inputs)
            output.loss.backward()
        [(_, kinds)] = tracker.get_tracker_snapshot("peak").items()
        own = [p.to_local() if world > 1 else p for p in model.parameters() if p.requires_grad]
        trained = sum(p.numel() * 4 for p in own)
    found = {getattr(kind, "value", kind): size for kind, size in kinds.items()}
    gradients = found.get("Sharded Grad", 0) + found.get("Gradient", 0)
    known = ("Sharded Param", "Parameter", "Sharded Grad", "Gradient", "Total")
    gathered = sum(found.get(k, 0) for k in ("Unsharded Param", "Unsharded Grad", "All Gather", "Reduce Scatter"))
    activations = found.get("Activation", 0) + found.get("Temp", 0)
    rest = sum(size for kind, size in found.items() if kind not in known) - gathered - activations
    return {
        "gathered": gathered,
        "activations": activations,
        "rest": rest,
        "gradient_share": gradients / trained,
        "calls": calls,
    }


def track_frozen(model: nn.Module) -> None:
    """torch's plain tracker hooks every parameter's gradient, which fails for frozen ones; targets get none anyway."""
    for parameter in model.parameters():
        parameter.requires_grad_(True)


@contextmanager
def _fake_processes(world: int) -> Iterator[DeviceMesh | None]:
    """Device mesh of a process group whose collectives do nothing; None for one process."""
    if world == 1:
        yield None
        return
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    try:
        yield init_device_mesh("cpu", (world,))
    finally:
        dist.destroy_process_group()


def _shard_bytes(model: nn.Module, recipe: Recipe, processes: int) -> dict[str, float]:
    """Float32 bytes of the largest shard: FSDP2 splits the first dimension, rounded up."""

    def largest(p: nn.Parameter) -> int:
        return math.ceil(p.shape[0] / processes) * p[0].numel() * 4 if p.ndim else 4

    every = sum(largest(p) for p in model.parameters())
    learns = sum(largest(p) for p in model.parameters() if p.requires_grad)
    return {"parameters": every, "gradients": learns, "optimizer": learns * _STATES.get(recipe.optim.name, 1)}


def _traffic(model: nn.Module, calls: Counter, processes: int, precision: str, accumulation: int) -> float:
    """Bytes that a process sends per step: weights gathered in each pass, gradients reduced once, in float32.

    In a ring, each costs (N - 1) / N of the whole. An encoder that is called once for global and once for local crops
    is gathered for both, forward and backward; BatchNorms stay gathered in between. The all-reduces of SyncBatchNorm
    and Sinkhorn are small in comparison and not counted.
    """
    total, owned = 0.0, set()
    part_of = {id(p): name for name, child in model.named_children() for p in child.parameters()}
    for unit in units(model):
        own = [p for p in unit.parameters() if id(p) not in owned]
        owned.update(map(id, own))
        norm = isinstance(unit, nn.modules.batchnorm._BatchNorm)
        width = 4 if precision == "no" or in_float32(model, unit) else 2
        for p in own:
            passes = 1 if norm and p.requires_grad else calls[part_of.get(id(p))] * (2 if p.requires_grad else 1)
            total += p.numel() * (width * passes + (4 if p.requires_grad else 0))
    return total * accumulation * (processes - 1) / processes


def _warnings(recipe: Recipe, model: nn.Module, processes: int) -> list[str]:
    train, data, notes = recipe.train, recipe.data, []
    try:
        recipe.per_process_batch(processes)
    except RecipeError as error:
        notes.append(str(error))
    if data.streaming and data.partitions and data.partitions % processes:
        wrong = "too few" if data.partitions < processes else "not a multiple, so some processes finish earlier"
        notes.append(f"data.partitions={data.partitions} for {processes} processes is {wrong}.")
    if data.streaming and not data.partitions and processes > 16:
        notes.append(f"data.partitions defaults to 16; set it to a multiple of {processes}.")
    group = train.batch_size if train.sync_batchnorm else train.batch_size // processes
    if group // train.accumulation < _SMALL_NORM_BATCH:
        notes.append(f"BatchNorm statistics come from only {group // train.accumulation} images.")
    prototypes = max(getattr(model.config, "prototype_counts", [0]))
    if prototypes > 4 * (train.batch_size // train.accumulation) and not model.config.queue_length:
        notes.append(f"{prototypes:,} prototypes for {train.batch_size:,} images without a queue: most stay unused.")
    short = [p for p in model.parameters() if p.ndim and p.shape[0] < processes]
    if processes > 1 and short:
        notes.append(
            f"{len(short)} tensors ({sum(p.numel() for p in short) / 1e6:,.1f} M parameters) have fewer rows than "
            "there are processes, and are not sharded evenly."
        )
    return notes
