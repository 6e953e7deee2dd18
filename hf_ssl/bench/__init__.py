# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""`hf-ssl bench`: throughput of the data pipeline, the training step and both, and where the time goes.

Measurements alternate and are repeated, and are reported as medians with ranges, since the speed of a shared machine
varies. With `cpu_seconds`, the unit is images per CPU second of one thread without workers, which other programs
affect least.
"""

import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from accelerate.utils import gather_object
from torch.profiler import ProfilerActivity, profile

from ..errors import RecipeError
from ..hub.card import hardware, versions
from ..recipe import Recipe
from ..training.metrics import peak_memory
from ..training.pretrain import train_step
from ..training.run import Run
from ..training.setup import build, open_run
from ..training.signals import StopSignals


PARTS = ("data", "step", "whole")
_STEPS = 10**9  # length of the measured run, which never ends
# The profiler's names of CUDA calls that wait for the GPU.
_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")


class Side(Protocol):
    """An implementation to measure; each call processes `count` batches of one optimizer step each.

    `ahead`: batches that workers may have prefetched during another measurement; they are excluded from rates.
    """

    ahead: int

    def data(self, count: int) -> None:
        """From files to the model's inputs."""

    def step(self, count: int) -> None:
        """Optimizer steps on fixed inputs."""

    def whole(self, count: int) -> None:
        """Both, as in training."""


@dataclass
class Rate:
    """Images per second: median, lowest and highest of the repeats."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, rates: list[float]) -> "Rate":
        return cls(statistics.median(rates), min(rates), max(rates))

    def __str__(self) -> str:
        return f"{self.median:10,.1f}  ({self.low:,.1f} to {self.high:,.1f})"


class Ours:
    """A run of hf_ssl, set up as by `pretrain`."""

    def __init__(self, run: Run, stop: StopSignals):
        self.run, self.stop = run, stop
        self.batches: Iterator[dict[str, Any]] = iter(run.loader)
        self.inputs = run.inputs_of(next(self.batches))
        self.done = 0
        self.ahead = 2 * run.loader.num_workers

    def data(self, count: int) -> None:
        for _ in range(count):
            for _ in range(self.run.recipe.train.accumulation):
                self.run.inputs_of(next(self.batches))

    def step(self, count: int) -> None:
        for _ in range(count):
            self._step(iter([{}] * self.run.recipe.train.accumulation))

    def whole(self, count: int) -> None:
        for _ in range(count):
            self._step(self.run.micro_batches(self.batches, self.stop, self.done))

    def _step(self, batches: Iterator[dict[str, Any]]) -> None:
        output, _ = train_step(self.run, batches, self.done, False)
        self.run.monitor.observe(output)
        self.done += 1

    @contextmanager
    def fixed(self) -> Iterator[None]:
        """Context in which every batch has the same inputs."""
        inputs_of, self.run.inputs_of = self.run.inputs_of, lambda batch: self.inputs  # type: ignore[method-assign]
        try:
            yield
        finally:
            self.run.inputs_of = inputs_of  # type: ignore[method-assign]


def bench(
    recipe: Recipe,
    *,
    repeats: int = 5,
    seconds: float = 2.0,
    against: str | None = None,
    cpu_seconds: bool = False,
    dataset=None,
) -> dict[str, Any]:
    """Measure a recipe on this machine; nothing of the run is kept.

    Args:
        repeats: repeats of each measurement.
        seconds: minimum duration of each measurement.
        against: "lightly", to also measure its data, heads and loss with the same sizes, precision and batch.
        cpu_seconds: count CPU seconds of one thread, without workers.

    Returns:
        Plain data: rates in images per second over all processes, seconds per step for each part, the efficiency, and
        settings and hardware.

    Raises:
        RecipeError: see `pretrain`; or the package to compare with is missing or does not support the recipe.
    """
    if cpu_seconds:
        torch.set_num_threads(1)
        recipe = replace(recipe, data=replace(recipe.data, num_workers=0))
    train = replace(recipe.train, epochs=None, steps=_STEPS, push_to_hub=None, track=(), keep_every=None)
    with tempfile.TemporaryDirectory() as folder:
        train = replace(train, output_dir=folder)
        with open_run(replace(recipe, train=train), dataset) as run, StopSignals() as stop:
            build(run)
            device = run.accelerator.device
            if cpu_seconds and device.type != "cpu":
                raise RecipeError("--cpu-seconds does not measure a GPU; remove it.")
            ours = Ours(run, stop)
            sides: dict[str, Side] = {"hf_ssl": ours}
            if against is not None:
                from .lightly import Lightly

                sides[against] = Lightly(run, ours.inputs)
            clock = time.process_time if cpu_seconds else _clock(device)
            rates = _rates(sides, ours, train.batch_size, clock, repeats, seconds)
            result = _facts(run, cpu_seconds)
            result["rates"] = {name: {part: vars(Rate.of(rates[name, part])) for part in PARTS} for name in sides}
            result["efficiency"] = _efficiency(result["rates"]["hf_ssl"], device)
            result["seconds"] = _where(run, ours, clock)
            result |= {**peak_memory(device), **_waits(ours, device)}
            run.metrics.close()
    return result


def _clock(device: torch.device) -> Callable[[], float]:
    """A clock in seconds that synchronizes the device first."""

    def read() -> float:
        if device.type != "cpu":
            torch.get_device_module(device).synchronize()
        return time.perf_counter()

    return read


def _rates(sides, ours: Ours, batch: int, clock, repeats: int, seconds: float) -> dict[tuple[str, str], list[float]]:
    """Images per second of every part and side; each repeat measures all in turn."""
    counts: dict[tuple[str, str], int] = {}
    rates: dict[tuple[str, str], list[float]] = {}
    for repeat in range(-1, repeats):  # the first one warms up and determines how many steps fill the time
        for part in PARTS:
            for name, side in sides.items():
                measure = getattr(side, part)
                with ours.fixed() if part == "step" else _nothing():
                    if part != "step":
                        measure(max(1, side.ahead))
                    elif repeat < 0:
                        measure(1)
                    count = counts.get((name, part), 1)
                    start = clock()
                    measure(count)
                    taken = clock() - start
                if repeat < 0:
                    count = max(1, math.ceil(seconds / max(taken, 1e-6)))
                    counts[name, part] = gather_object([count])[0]  # the same on all processes
                else:
                    rates.setdefault((name, part), []).append(count * batch / taken)
    return rates


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _efficiency(rates: dict[str, dict[str, float]], device: torch.device) -> float:
    """Training throughput over the possible one: a CPU alternates between data and step, a GPU overlaps them."""
    data, step, whole = (rates[part]["median"] for part in PARTS)
    return whole / (1 / (1 / data + 1 / step) if device.type == "cpu" else min(data, step))


def _where(run: Run, ours: Ours, clock) -> dict[str, float]:
    """Seconds per optimizer step for each part, measured separately."""
    train, accelerator = run.recipe.train, run.accelerator
    found: dict[str, float] = {}
    half = run.modality.half(__package__)
    stage1 = run.modality.stage1(run.views, run.config, run.recipe)
    source: Any = run.examples.source
    source = source.head(64) if run.examples.streamed else source
    some = range(min(32, len(source)))
    scale = train.batch_size / len(some) / accelerator.num_processes
    found["decode"] = scale * _median(clock, lambda: [half.decode(source, index, run.config) for index in some])
    made = _median(clock, lambda: stage1.stack([stage1.make(source.record(i), (0, 0, i), source) for i in some]))
    found["crop and flip"] = max(0.0, scale * made - found["decode"])
    batch = next(ours.batches)
    device = accelerator.device
    if device.type != "cpu":
        tensors = [value for value in batch.values() if isinstance(value, torch.Tensor)]
        found["transfer"] = train.accumulation * _median(clock, lambda: [t.to(device) for t in tensors])
    both = train.accumulation * _median(clock, lambda: run.stage2(batch, device))
    found["colors and normalization"] = max(0.0, both - found.get("transfer", 0.0))
    found |= _step_parts(run, ours, clock)
    before = clock()
    run.monitor.measure(run.model)
    found["monitor, each time"] = clock() - before
    before, waited = clock(), run.throughput.waited
    ours.whole(5)
    found["waiting for data"] = (run.throughput.waited - waited) / 5
    found["a step in all"] = (clock() - before) / 5
    return found


def _step_parts(run: Run, ours: Ours, clock) -> dict[str, float]:
    accelerator, parts = run.accelerator, {"forward": 0.0, "backward": 0.0, "optimizer": 0.0}
    parts |= {"all-reduce": 0.0} if accelerator.num_processes > 1 else {}
    repeats, accumulation = 5, run.recipe.train.accumulation
    for repeat in range(repeats + 1):
        now = (ours.done, run.num_steps, run.steps_per_epoch)
        run.model.before_step(*now)
        times = [clock()]
        output = run.wrapped(**ours.inputs)
        times.append(clock())
        accelerator.backward(output.loss)
        times.append(clock())
        run.model.before_optimizer_step(*now)
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
        run.model.after_step(*now)
        times.append(clock())
        if repeat:
            for name, before, after in zip(("forward", "backward", "optimizer"), times, times[1:], strict=False):
                parts[name] += (after - before) / repeats
        if repeat and accelerator.num_processes > 1:
            with accelerator.no_sync(run.wrapped):
                output, before = run.wrapped(**ours.inputs), clock()
                accelerator.backward(output.loss)
                parts["all-reduce"] += (times[2] - times[1] - (clock() - before)) / repeats
            run.optimizer.zero_grad(set_to_none=True)
        ours.done += 1
    return {name: value * (1 if name == "optimizer" else accumulation) for name, value in parts.items()}


def _median(clock, call: Callable[[], Any], repeats: int = 5) -> float:
    times = []
    for _ in range(repeats + 1):
        before = clock()
        call()
        times.append(clock() - before)
    return statistics.median(times[1:])


def _waits(ours: Ours, device: torch.device) -> dict[str, int]:
    """How often the host waits for the GPU in a step."""
    if device.type != "cuda":
        return {}
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        ours.whole(1)
    return {"waits_for_the_device": sum(event.name in _WAITS for event in profiler.events() or ())}


def _facts(run: Run, cpu_seconds: bool) -> dict[str, Any]:
    """Settings and hardware of the measurement."""
    recipe, processes = run.recipe, run.accelerator.num_processes
    return {
        "recipe": recipe.name or recipe.method,
        "counts": run.modality.name,
        "batch_size": recipe.train.batch_size,
        "views": " and ".join(f"{count} of {size} px" for size, count in _sizes(run).items()),
        "precision": run.accelerator.mixed_precision,
        "clock": "CPU seconds of one thread" if cpu_seconds else "seconds",
        "workers": min(recipe.data.num_workers, os.cpu_count() or 1),
        "threads": torch.get_num_threads(),
        "hardware": hardware(processes, str(run.accelerator.device)),
        "processor": _processor(),
        "seed": recipe.train.seed,
        "versions": versions(),
    }


def _sizes(run: Run) -> dict[int, int]:
    sizes = [view.size for view in run.views]
    return {size: sizes.count(size) for size in dict.fromkeys(sizes)}


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def table(result: dict[str, Any]) -> str:
    """Format a measurement for a terminal."""
    kind = result["counts"]
    lines = [
        f"{result['recipe']}: {result['views']}, batch {result['batch_size']}, precision {result['precision']}, "
        f"{result['workers']} worker(s), {result['threads']} thread(s)",
        f"{result['processor']}, {result['hardware']}",
        "",
        f"{kind} per {'CPU second' if result['clock'] != 'seconds' else 'second'}, median (range)",
    ]
    ours = result["rates"]["hf_ssl"]
    for name, rates in result["rates"].items():
        for part in PARTS:
            ratio = "" if name == "hf_ssl" else f"  hf_ssl / {name} {ours[part]['median'] / rates[part]['median']:.2f}"
            lines.append(f"  {name:10}{part:6}{Rate(**rates[part])}{ratio}")
    lines += ["", f"whole / possible with data and step  {result['efficiency']:.2f}", "", "seconds per step"]
    lines += [f"  {name:28}{value:10.4f}" for name, value in result["seconds"].items()]
    if "peak_memory_gib" in result:
        lines += ["", f"peak memory {result['peak_memory_gib']:.2f} GiB"]
    if "waits_for_the_device" in result:
        lines.append(f"waits for the device per step: {result['waits_for_the_device']}")
    return "\n".join(lines)
