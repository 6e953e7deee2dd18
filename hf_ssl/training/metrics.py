# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""What a run writes down about itself: `metrics.jsonl`, trackers, speed, and totals that survive a restart."""

import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import gather_object

from ..recipe import Recipe


logger = get_logger(__name__)


class Journal:
    """`metrics.jsonl`, one JSON object a line, and the trackers of `train.track`; also keeps `recipe.yaml`.

    Lines after `start`, which a resumed run writes again, are cut off first.
    """

    def __init__(self, recipe: Recipe, accelerator: Accelerator, start: int, steps_per_epoch: int):
        folder = Path(recipe.train.output_dir)
        self.path = folder / "metrics.jsonl"
        self.accelerator, self.steps_per_epoch = accelerator, steps_per_epoch
        if accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            kept = [line for line in read_metrics(self.path) if line["step"] <= start] if start else []
            partial = self.path.with_suffix(".partial")
            partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
            os.replace(partial, self.path)
            (folder / "recipe.yaml").write_text(recipe.to_yaml())
        if recipe.train.track:
            accelerator.init_trackers("hf_ssl", config=recipe.flat_text())

    def record(self, step: int, values: dict[str, Any]) -> None:
        self.accelerator.log(values, step=step)
        if not self.accelerator.is_main_process:
            return
        line = {"step": step, "epoch": round(step / self.steps_per_epoch, 4), **values}
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:  # a full disk must not end the run
            logger.warning(f"{self.path} could not be written ({error}); free some space.")

    def close(self) -> None:
        """Finish the trackers. The process group stays: a script may run another recipe in the same processes."""
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def at(self, step: int) -> dict[str, Any]:
        """All values recorded for a step, also before a restart."""
        lines = [line for line in read_metrics(self.path) if line["step"] == step]
        return {key: value for line in lines for key, value in line.items()}


class Totals:
    """Counters over the whole run and all processes, kept in checkpoints."""

    def __init__(
        self, accelerator: Accelerator, skipped: int = 0, seconds: float = 0.0, skipped_names: Iterable[str] = ()
    ):
        self.accelerator, self.skipped, self.seconds = accelerator, skipped, seconds
        self._named, self._own, self._new = set(skipped_names), 0, []

    def add_skipped(self, skipped: list[tuple[str, str]]) -> None:
        """Count images of this process that could not be read, (name, reason), and name each of them once."""
        self._own += len(skipped)
        for name, reason in skipped:
            if name not in self._named:
                self._named.add(name)
                self._new.append(name)
                logger.warning(f"Skipped {name}: {reason}", main_process_only=False)

    def synchronize(self) -> None:
        for count, names in gather_object([(self._own, self._new)]):
            self.skipped += count
            self._named.update(names)
        self._own, self._new = 0, []

    def summarize(self) -> None:
        """Say at the end of a run how much of the data was not seen."""
        if self.skipped:
            names = sorted(self._named)
            said = f"{len(names):,} different file(s) could not be read, {self.skipped:,} times in all"
            logger.warning(f"{said}, and others were shown in their place; the first is {names[0]}.")

    def to_dict(self) -> dict[str, Any]:
        names = {"skipped_names": sorted(self._named)} if self._named else {}
        return {"skipped": self.skipped, "seconds": round(self.seconds, 3), **names}


class Meter:
    """Loss and speed between two log lines; time spent measuring or saving does not count."""

    def __init__(self, accelerator: Accelerator, step: int):
        self.loss = torch.zeros((), device=accelerator.device)
        self._step, self._start, self._waited = step, time.perf_counter(), 0.0

    def add_loss(self, loss: torch.Tensor) -> None:
        self.loss += loss

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent here is waiting for data."""
        before = time.perf_counter()
        yield
        self._waited += time.perf_counter() - before

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent here is not training."""
        before = time.perf_counter()
        yield
        self._start += time.perf_counter() - before

    def read(self, step: int, batch_size: int, kind: str = "images") -> dict[str, float]:
        """Mean loss, images or clips per second, share of time waiting for data, seconds since the last reading."""
        steps = step - self._step
        loss = self.loss.item() / steps  # waits for the device, so it comes before the clock
        seconds = time.perf_counter() - self._start
        values = {
            "loss": loss,
            f"{kind}_per_second": steps * batch_size / seconds,
            "data_wait": self._waited / seconds,
            "seconds": seconds,
        }
        self.loss.zero_()
        self._step, self._start, self._waited = step, time.perf_counter(), 0.0
        return values


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a `metrics.jsonl`; a last line cut by a kill is left out."""
    lines = []
    if path.exists():
        for line in path.read_text().splitlines():
            with suppress(json.JSONDecodeError):
                lines.append(json.loads(line))
    return lines
