# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Read a run's folder: recipe, curves, skipped files, and a verdict."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint_folder import CheckpointFolder
from ..errors import UserError
from ..files import read_text, read_yaml
from ..recipe import Recipe, recipe_from_dict
from ..recipe.sections import flatten
from ..training.metrics import read_metrics
from ..training.monitor import COLLAPSED_STD


# Figures that show whether a run has learned something, most informative first, with readable names.
_HEADLINES = {
    "knn": "kNN accuracy",
    "video_to_audio_p1": "class precision at 1, video to audio",
    "video_to_audio_r1": "R@1, video to audio",
}


@dataclass(frozen=True)
class RunFiles:
    """Content of a run's folder.

    Attributes:
        lines: lines of `metrics.jsonl`, oldest first.
        results: `results.json` of the exported model; for an unfinished run, of its newest checkpoint.
        skipped: number of failed reads; `skipped_names` are the files.
    """

    folder: Path
    name: str
    recipe: Recipe
    lines: list[dict[str, Any]]
    results: dict[str, Any]
    skipped: int
    skipped_names: list[str]

    @property
    def model(self) -> Path | None:
        """The exported model; None for an unfinished run."""
        folder = self.folder / "model"
        return folder if (folder / "config.json").is_file() else None

    def values(self, key: str) -> tuple[list[float], list[float]]:
        """Epochs and values of a curve."""
        found = [(line.get("epoch", line["step"]), line[key]) for line in self.lines if _is_number(line.get(key))]
        return [x for x, _ in found], [y for _, y in found]

    def first_and_last(self, key: str) -> tuple[float, float] | None:
        """A figure before training and at the end."""
        epochs, values = self.values(key)
        return (values[0], values[-1]) if len(values) > 1 and epochs[0] == 0 else None


def read_run(folder: str | Path) -> RunFiles:
    """Read a run's folder.

    Raises:
        UserError: it is not a run, or has no metrics yet.
    """
    place = Path(folder).expanduser().resolve()
    place = place.parent if place.name == "model" and (place.parent / "recipe.yaml").is_file() else place
    if not (place / "recipe.yaml").is_file():
        raise UserError(f"{folder} is not a run: recipe.yaml is missing; pass a folder made by `hf-ssl pretrain`.")
    lines = read_metrics(place / "metrics.jsonl")
    if not lines:
        raise UserError(f"{folder} has no metrics.jsonl yet; wait for the run's first log line.")
    totals, results = {}, _read_json(place / "model" / "results.json")
    for checkpoint in reversed(CheckpointFolder.complete(place / "checkpoints")):
        try:
            state = CheckpointFolder(checkpoint).read_state()
        except (OSError, ValueError, TypeError, AttributeError):
            continue  # damaged; the previous one has nearly the same content
        totals, results = state.totals, results or state.results
        break
    recipe = recipe_from_dict(read_yaml(read_text(place / "recipe.yaml"), str(place / "recipe.yaml")))
    skipped = totals.get("skipped", lines[-1].get("skipped", 0))
    return RunFiles(place, place.name, recipe, lines, results, skipped, totals.get("skipped_names", []))


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def verdict(run: RunFiles) -> tuple[str, str]:
    """One of "learning", "stalled", "collapsed" and "unknown", and a sentence with the figures.

    A gain counts as learning if it exceeds two standard errors of the difference.
    """
    _, spread = run.values("embedding_std")
    if spread and spread[-1] < COLLAPSED_STD:
        return "collapsed", (
            f"The embeddings of all images are nearly the same: their standard deviation is {spread[-1]:.1%} of the "
            "healthy 1/sqrt(d)."
        )
    for key, name in _HEADLINES.items():
        if (found := run.first_and_last(key)) is None:
            continue
        before, after = found
        count = run.results.get("measured", {}).get("num_queries")
        error = math.sqrt(sum(p * (1 - p) for p in found) / count) if count else 0.01
        said = f"{name} {before:.1%} {run.recipe.start} → {after:.1%} trained"
        _, raw = run.values("knn_raw_pixels")
        said += f", raw pixels {raw[0]:.1%}" if raw and key == "knn" else ""
        said += f" ({count:,} queries, ±{error:.1%} on the difference)." if count else "."
        if key == "knn" and raw and after < raw[0]:
            said += " Raw pixels are still better: train longer, or on more images."
        return ("learning" if after - before > 2 * error else "stalled"), said
    if spread:
        return "unknown", (
            f"Not collapsed (standard deviation {spread[-1]:.2f} of the healthy 1/sqrt(d)); without labeled images "
            "it is unknown how much was learned. Set monitor.path to labeled images, or run hf-ssl evaluate."
        )
    return "unknown", "No measurement yet shows how much was learned."


def differences(runs: list[RunFiles]) -> list[tuple[str, list[str]]]:
    """Recipe keys that differ between runs, with each run's value; the output folder is ignored."""
    flat = [flatten(run.recipe.to_dict()) for run in runs]
    keys = dict.fromkeys(key for one in flat for key in one if key != "train.output_dir")
    rows = [(key, ["default" if one.get(key) is None else str(one[key]) for one in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def facts(run: RunFiles) -> list[tuple[str, str]]:
    """Facts about time and hardware."""
    results, counted = run.results, "clips" if run.values("clips_per_second")[1] else "images"
    _, speeds = run.values(f"{counted}_per_second")
    _, waits = run.values("data_wait")
    _, memory = run.values("peak_memory_gib")
    rows = [("steps", f"{run.lines[-1]['step']:,}")]
    if results.get("num_examples"):
        rows.append((counted, f"{results['num_examples']:,}"))
    if results.get("seconds"):
        rows.append(("training time", _duration(results["seconds"])))
    if speeds:
        rows.append((f"{counted} per second, median", f"{sorted(speeds)[len(speeds) // 2]:,.0f}"))
    if waits:
        rows.append(("waiting for data", f"{sum(waits) / len(waits):.1%}"))
    if memory:
        rows.append(("peak memory per process", f"{max(memory):.2f} GiB"))
    if results.get("hardware"):
        rows.append(("hardware", results["hardware"]))
    return rows + [(name, version) for name, version in results.get("versions", {}).items()]


def _duration(seconds: float) -> str:
    minutes, hours = round(seconds / 60), round(seconds / 3600, 1)
    return f"{hours:g} h" if minutes >= 90 else f"{minutes} min" if minutes >= 2 else f"{seconds:.0f} s"
