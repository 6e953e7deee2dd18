# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Add results of `hf-ssl evaluate` (`results/*.json` in a model's folder) to its card and metadata."""

import logging
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from ..errors import UserError
from ..evaluation.results import cell, figures
from ..files import read_json


logger = logging.getLogger(__name__)

_TITLES = {"knn": "kNN", "linear": "linear classifier", "lowshot": "low-shot", "retrieval": "retrieval"}
_TITLES |= {"dense": "dense linear probe"}


def read_evaluations(folder: Path) -> list[dict[str, Any]]:
    """Results in a model's folder; other files are skipped with a warning."""
    found = []
    for file in sorted((folder / "results").glob("*.json")):
        try:
            result = read_json(file)
            if not _is_result(result):
                raise UserError(f"{file} is not a result of hf-ssl evaluate; remove it from the folder.")
            found.append(result)
        except UserError as error:
            logger.warning(str(error))
    return found


def _is_result(result: dict[str, Any]) -> bool:
    """Whether an untrusted file has everything that the card needs."""
    beside = result.get("baselines", {})
    if not isinstance(beside, dict) or not all(isinstance(one, dict) for one in beside.values()):
        return False
    for one in (result, *beside.values()):
        values = [*figures(one).values(), *one["errors"].values()] if isinstance(one.get("errors"), dict) else [None]
        if not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
            return False
    texts, tables = ("protocol", "said", "data"), (result.get("measured"), result.get("chosen", {}))
    if not all(isinstance(one, dict) for one in tables):
        return False
    return all(isinstance(result.get(name), str) for name in texts) and all(
        isinstance(value, int | float) for value in result.get("chosen", {}).values()
    )


def title(result: dict[str, Any]) -> str:
    """Name of a protocol with all settings that affect its figure."""
    name = _TITLES.get(result["protocol"], result["protocol"])
    chosen = ", ".join(f"{key}={value:g}" for key, value in result.get("chosen", {}).items())
    return f"{name} ({result['said']}{f', {chosen}' if chosen else ''})"


def section(evaluations: Sequence[dict[str, Any]]) -> str:
    """Markdown table of all figures with standard errors; "" if there are none."""
    if not evaluations:
        return ""
    beside = list(dict.fromkeys(name for one in evaluations for name in one.get("baselines", {})))
    lines = [f"| | data | this model | {' | '.join(beside)} |", f"| {' | '.join(['---'] * (3 + len(beside)))} |"]
    if not beside:
        lines = ["| | data | this model |", "| --- | --- | --- |"]
    for one in evaluations:
        for key in figures(one):
            columns = [one, *(one.get("baselines", {}).get(name, {}) for name in beside)]
            cells = [cell(column, key, 1) for column in columns]
            lines.append(f"| {title(one)}: {key} | {Path(str(one['data'])).name} | {' | '.join(cells)} |")
    return "## Evaluation\n\n" + "\n".join(lines) + "\n\n± is the standard error; for low-shot, over the draws."


def entries(evaluations: Sequence[dict[str, Any]]) -> list[EvalResult]:
    """Model index entries, one per protocol and accuracy-like figure."""
    found = []
    for one in evaluations:
        data = Path(str(one["data"])).name
        for key, value in figures(one).items():
            if key.endswith("rank"):
                continue
            found.append(
                EvalResult(
                    task_type="image-segmentation" if one["protocol"] == "dense" else "image-classification",
                    dataset_type=data,
                    dataset_name=data,
                    dataset_split=one["measured"].get("queries", "test"),
                    metric_type=_metric(key),
                    metric_name=f"{title(one)}: {key}",
                    metric_value=round(100 * value, 2),
                )
            )
    return found


def _metric(key: str) -> str:
    """The Hub's name of a metric."""
    kinds = {"map": "mean_average_precision", "mp": "precision", "miou": "mean_iou"}
    return next((name for start, name in kinds.items() if re.match(rf"{start}(\d|_|$)", key)), "accuracy")
