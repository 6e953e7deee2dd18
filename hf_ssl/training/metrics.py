# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Metrics of a run: `metrics.jsonl`, trackers, throughput, and totals that survive a restart."""

import json
import math
import os
import sys
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from ..disk import atomic_write
from ..errors import UserError
from ..logs import get_logger
from ..recipe import Recipe


logger = get_logger(__name__)


class MetricsLogger:
    """Writes `metrics.jsonl` (one JSON object per line) and `recipe.yaml`, and logs to the trackers of `train.track`.

    Lines after step `start` are dropped first, because the resumed run writes them again.

    Args:
        start: step of the checkpoint to resume from, or None.
        results: of that checkpoint; replace lines that are missing from the file.
    """

    def __init__(
        self,
        recipe: Recipe,
        accelerator: Accelerator,
        steps_per_epoch: int,
        start: int | None = None,
        results: dict[str, Any] | None = None,
    ):
        folder = recipe.train.folder
        self.path, self._recipe = folder / "metrics.jsonl", recipe
        self.accelerator, self.steps_per_epoch = accelerator, steps_per_epoch
        self._kept: list[dict[str, Any]] = []
        if start is not None:
            self._kept = [line for line in read_metrics(self.path) if line["step"] <= start]
            for step, key in ((0, "baseline"), (start, "final")):
                figures = (results or {}).get(key)
                if figures and not any(line["step"] == step for line in self._kept):
                    self._kept.append({"step": step, **figures})
            self._kept.sort(key=lambda line: line["step"])
        self._torn = False
        self._values: dict[int, dict[str, Any]] = {}
        for line in self._kept:
            self._remember(line)
        if recipe.train.track:
            settings = tracker_settings(folder, start, accelerator.is_main_process)
            accelerator.init_trackers("hf_ssl", config=recipe.flat_text(), init_kwargs=settings)

    def begin(self) -> None:
        """Rewrite the file with the lines to keep, and write `recipe.yaml`; on the main process.

        Raises:
            UserError: the folder is not writable.
        """
        try:
            atomic_write(self.path, "".join(json.dumps(line) + "\n" for line in self._kept))
            atomic_write(self.path.with_name("recipe.yaml"), self._recipe.to_yaml())
        except OSError as error:
            raise UserError(
                f"train.output_dir={self.path.parent} cannot be written ({error}); free some space or set another one."
            ) from error

    def record(self, step: int, values: dict[str, Any]) -> None:
        values = {key: _number(value) for key, value in values.items()}
        line = {"step": step, "epoch": round(step / self.steps_per_epoch, 4), **values}
        self._remember(line)
        try:
            self.accelerator.log(values, step=step)
            if self.accelerator.is_main_process:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as file:
                    file.write("\n" * self._torn + json.dumps(line) + "\n")
                self._torn = False
        except OSError as error:  # a full disk must not end the run
            self._torn = True  # the line may be incomplete, so begin a new one next time
            logger.warning(f"{self.path} could not be written ({error}); free some space or make it writable.")

    def alert(self, title: str, text: str) -> None:
        """Send an alert to the trackers that support alerts, for people who do not watch the terminal."""
        if not self.accelerator.is_main_process:
            return
        for tracker in self.accelerator.trackers:
            if tracker.name == "wandb":
                tracker.tracker.alert(title=title, text=text, level="WARN")
            elif tracker.name == "trackio":
                import trackio

                if hasattr(trackio, "alert"):  # missing in early versions
                    trackio.alert(title=title, text=text, level=trackio.AlertLevel.WARN)

    def show(self, page: Path | None) -> None:
        """Log an HTML page to the trackers with an Html class: wandb and trackio; tensorboard has none."""
        for tracker in self.accelerator.trackers if page else ():
            kind = getattr(sys.modules.get(tracker.name), "Html", None)
            if kind is not None:
                tracker.tracker.log({"report": kind(str(page))})

    def close(self) -> None:
        """Finish the trackers. The process group stays, since a script may run another recipe."""
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def at(self, step: int) -> dict[str, Any]:
        """Values recorded at `step`, also before a restart; only step 0 and the newest step are kept."""
        return self._values.get(step, {})

    def _remember(self, line: dict[str, Any]) -> None:
        step = line["step"]
        self._values = {kept: values for kept, values in self._values.items() if kept in (0, step)}
        self._values[step] = self._values.get(step, {}) | line


def tracker_settings(folder: Path, start: int | None, is_main_process: bool) -> dict[str, dict[str, Any]]:
    """Init arguments of each tracker, so that a restarted run stays one run and its files are in its folder.

    The run id is random and kept in the folder, so a new run in an emptied folder is a new run for the tracker.
    """
    if not is_main_process:
        return {}
    file = folder / "tracking_id"
    if start is None or not file.exists():
        atomic_write(file, uuid.uuid4().hex[:8])
    number = file.read_text(encoding="utf-8").strip()
    os.environ.setdefault("TRACKIO_DIR", str((folder / "trackio").resolve()))  # trackio reads it on import
    return {
        "wandb": {"id": number, "name": folder.name, "dir": str(folder), "resume": "allow"},
        "trackio": {"name": f"{folder.name}-{number}", "resume": "allow"},
        "tensorboard": {"purge_step": (start or 0) + 1},  # a resumed run writes these steps again
    }


class RunTotals:
    """Counters over the whole run and all processes, kept in checkpoints."""

    def __init__(
        self,
        accelerator: Accelerator,
        skipped: int = 0,
        seconds: float = 0.0,
        skipped_names: Iterable[str] = (),
        waited: float = 0.0,
    ):
        self.accelerator, self.skipped, self.seconds, self.waited = accelerator, skipped, seconds, waited
        self._named, self._own = set(skipped_names), 0
        self._new: list[str] = []

    def add_skipped(self, skipped: list[tuple[str, str]]) -> None:
        """Count unreadable files of this process, given as (name, reason), and log each of them once."""
        self._own += len(skipped)
        for name, reason in skipped:
            if name not in self._named:
                self._named.add(name)
                self._new.append(name)
                logger.warning(f"Skipped {name}: {reason}", main_process_only=False)

    def add_time(self, seconds: float, waiting: float) -> None:
        """Add seconds of training; `waiting` is the fraction spent waiting for data."""
        self.seconds, self.waited = self.seconds + seconds, self.waited + waiting * seconds

    def synchronize(self) -> None:
        for count, names in gather_object([(self._own, self._new)]):
            self.skipped += count
            self._named.update(names)
        self._own, self._new = 0, []

    def summarize(self) -> None:
        """Log at the end of a run how many files were unreadable."""
        if self._named:
            names = sorted(self._named)
            said = f"{len(names):,} different file(s) could not be read ({self.skipped:,} attempts)"
            logger.warning(f"{said}, and were replaced by others; the first is {names[0]}.")

    def to_dict(self) -> dict[str, Any]:
        names = {"skipped_names": sorted(self._named)} if self._named else {}
        times = {"seconds": round(self.seconds, 3)} | ({"waited": round(self.waited, 3)} if self.waited else {})
        return {"skipped": self.skipped, **times, **names}

    def summary(self, shown: int, counted: str) -> dict[str, Any]:
        """Total cost of a run. Memory is the main process's peak since it started.

        Args:
            shown: number of examples over all steps.
            counted: unit of the examples, such as "images".
        """
        seconds = max(self.seconds, 1e-9)
        return {
            "counted": counted,
            "skipped": self.skipped,
            "skipped_files": len(self._named),
            "seconds": self.seconds,
            "per_second": shown / seconds,
            "data_wait": self.waited / seconds,
            "peak_memory_gib": peak_memory(self.accelerator.device).get("peak_memory_gib"),
        }


class Throughput:
    """Mean loss and speed between two log lines, excluding time for measuring or saving.

    `state` is stored in checkpoints, so that an interrupted run logs the same loss.
    """

    def __init__(self, accelerator: Accelerator, step: int, state: dict[str, Any] | None = None):
        self.loss = torch.zeros((), device=accelerator.device)
        if state is not None:
            self.loss += state["loss"].to(accelerator.device)
        self._step = step if state is None else state["step"]
        self._timed_from, self._start, self.waited = step, time.perf_counter(), 0.0

    def state(self) -> dict[str, Any]:
        return {"loss": self.loss.cpu(), "step": self._step}

    def add_loss(self, loss: torch.Tensor) -> None:
        self.loss += loss

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Context whose time counts as waiting for data."""
        before = time.perf_counter()
        yield
        self.waited += time.perf_counter() - before

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Context whose time does not count as training."""
        before = time.perf_counter()
        yield
        self._start += time.perf_counter() - before

    def read(self, step: int, batch_size: int, kind: str = "images") -> dict[str, float]:
        """Mean loss, examples per second, fraction of time waiting for data, and seconds since the last call."""
        loss = self.loss.item() / (step - self._step)  # synchronizes, so it must come before reading the clock
        seconds = time.perf_counter() - self._start
        values = {
            "loss": loss,
            f"{kind}_per_second": (step - self._timed_from) * batch_size / seconds,
            "data_wait": self.waited / seconds,
            "seconds": seconds,
        }
        self.loss.zero_()
        self._step = self._timed_from = step
        self._start, self.waited = time.perf_counter(), 0.0
        return values


def _number(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, by None."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def peak_memory(device: torch.device) -> dict[str, float]:
    """`peak_memory_gib` of this process since it started: on its accelerator, or resident memory on a CPU."""
    if device.type != "cpu":
        allocated = getattr(torch.get_device_module(device), "max_memory_allocated", None)  # MPS has none
        return {} if allocated is None else {"peak_memory_gib": round(allocated() / 2**30, 3)}
    try:
        import resource
    except ImportError:  # Windows
        return {}
    unit = 1 if sys.platform == "darwin" else 1024
    return {"peak_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, 3)}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All valid lines of a `metrics.jsonl`; a last line truncated by a kill is skipped."""
    lines, content = [], ""
    with suppress(OSError):  # missing; other problems are reported when it is written
        content = path.read_text(encoding="utf-8", errors="replace")
    for text in content.splitlines():
        with suppress(ValueError, RecursionError):
            line = json.loads(text)
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                lines.append(line)
    return lines
