# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Compare a run with the published results in its recipe's header.

The card shows published figures next to the run's own, never instead of them. It names the settings of each figure and
compares it with the run's measurement only if both are the same kind of figure.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from ..recipe import Recipe, load_recipe, recipe_header, shipped_recipes
from ..resolve import resolve


# Keys that affect neither the weights nor the meaning of a figure, only location, speed or data.
IGNORED = re.compile(
    r"name|data\.(num_\w+|\w+_column|streaming|partitions|shuffle_block|max_megapixels|max_failed_share)|monitor\..*"
    r"|train\.(output_dir|resume|track|seed|channels_last|compile|gradient_checkpointing|push_\w+|log_every"
    r"|checkpoint_every|checkpoint_minutes|keep|keep_every)"
)

KNN_KEYS = ("k", "temperature", "bank_split", "query_split", "max_bank", "max_queries")


@dataclass(frozen=True)
class Published:
    """One row of a recipe's `# Published:` line.

    Args:
        figures: measure ("linear top-1") -> printed figure ("74.3").
        settings: the row's description of its settings ("300 ep").
        overrides: overrides that turn the recipe into the row's settings.
    """

    figures: dict[str, str]
    settings: str
    overrides: tuple[str, ...]


def published_rows(path: Path) -> list[Published]:
    """All rows of a recipe's header; empty if nothing is published."""
    rows, measure = [], ""
    for text in filter(None, recipe_header(path).get("Published", "").split("; ")):
        said, settings = re.fullmatch(r"(.+) \(([^()]+)\)", text).groups()
        settings, _, overrides = settings.partition(": ")
        several = re.findall(r"of ([\w-]+) ([\d.]+)( \(linear\))?", said)
        if several:
            ways = {name: "linear" if linear else "fine-tuned" for name, _, linear in several}
            figures = {f"{said.split()[0]} of {name}, {ways[name]}": value for name, value, _ in several}
        else:
            first, _, value = said.rpartition(" ")
            measure = first or measure  # later rows omit the measure
            figures = {measure: value}
        rows.append(Published(figures, settings, tuple(overrides.split())))
    return rows


def differences(recipe: Recipe, other: Recipe, *, knn: bool = False) -> dict[str, tuple[str, str]]:
    """Keys that affect the weights and differ: key -> both values as text.

    Args:
        knn: include keys that affect a kNN figure.
    """
    own, others = _settings(recipe, knn), _settings(other, knn)
    missing = "unset"
    pairs = {key: (own.get(key, missing), others.get(key, missing)) for key in own | others}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _settings(recipe: Recipe, knn: bool) -> dict[str, str]:
    config = resolve(recipe).config
    model = json.loads(config.to_json_string(use_diff=False))  # includes defaults
    flat = {key: value for key, value in recipe.flat_text().items() if not key.startswith("model.")}
    kept = {key: value for key, value in flat.items() if not IGNORED.fullmatch(key)}
    kept |= {f"monitor.{key}": flat[f"monitor.{key}"] for key in KNN_KEYS if knn}
    kept |= {f"model.{key}": value for key, value in model.items() if not key.startswith(("transformers", "_"))}
    kept["model.init_from"] = recipe.model.get("init_from")
    return {key: "unset" if str(value) == "None" else str(value) for key, value in kept.items()}


def published_section(recipe: Recipe, knn: float | None) -> str:
    """Card section with the published figures of the shipped recipe that the run started from; "" if there are none.

    Args:
        recipe: the run's recipe, without local paths.
        knn: the run's own kNN accuracy.
    """
    path = shipped_recipes().get(recipe.name or "")
    rows = published_rows(path) if path else []
    if not rows:
        return ""
    found = []
    for row in rows:
        of_knn = "kNN" in row.figures
        found.append((row, differences(recipe, load_recipe(path, row.overrides).shareable(), knn=of_knn)))
    row, differing = min(found, key=lambda pair: len(pair[1]))
    header = recipe_header(path)
    lines = [
        "## Comparison with published results",
        f"The run started from hf_ssl's recipe `{recipe.name}`. Published results for that recipe "
        f"({header['Dataset']}, {row.settings.replace(' ep', ' epochs')}; source: {header['Source']}):",
        "| | this run | published |\n| --- | --- | --- |\n"
        + "\n".join(
            f"| {measure} | {f'{knn:.1%}' if measure == 'kNN' and knn is not None else 'not measured'} | {figure}% |"
            for measure, figure in row.figures.items()
        ),
    ]
    if not differing:
        lines.append(
            "The run used the settings of the published figure. It is a single run, and only the dataset name was "
            "compared, not its content."
        )
    else:
        lines.append(
            "**The published figure was obtained with other settings**, so the two are not comparable. "
            f"{len(differing)} keys differ:"
        )
        lines.append("\n".join(f"- `{k}`: `{own}`, published `{theirs}`" for k, (own, theirs) in differing.items()))
    return "\n\n".join(lines)
