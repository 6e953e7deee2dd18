# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Curves as SVG text, by matplotlib. Ink has the color of the surrounding page, for light and dark mode."""

import io
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .run_files import RunFiles


COLORS = ("#2f7ed8", "#e0781c", "#3a9d5d", "#b654c0")
_INK = "#0a0b0c"  # placeholder for the page's text color
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.4,
}
_HEALTHY = (0.5, 1.05)  # range of embedding_std: a trained network stays above 0.5, see hf_ssl.training.monitor

# Title of a panel, its keys with their labels, and whether they are fractions.
_PANELS: tuple[tuple[str, dict[str, str], bool], ...] = (
    ("loss", {"loss": "loss"}, False),
    ("learning rate", {"lr": "learning rate"}, False),
    ("accuracy", {"knn": "kNN", "probe": "linear probe", "knn_video": "kNN video", "knn_audio": "kNN audio"}, True),
    (
        "retrieval, video (v) and audio (a)",
        {
            "video_to_audio_p1": "v→a P@1",
            "audio_to_video_p1": "a→v P@1",
            "video_to_audio_r1": "v→a R@1",
            "audio_to_video_r1": "a→v R@1",
            "positive_precision": "positives",
        },
        True,
    ),
    ("std of embeddings (1 = healthy, 0 = collapsed)", {"embedding_std": "std"}, False),
    ("effective rank of features", {"effective_rank": "rank"}, False),
    ("alignment and uniformity", {"alignment": "alignment", "uniformity": "uniformity"}, False),
    ("examples per second", {"images_per_second": "images/s", "clips_per_second": "clips/s"}, False),
)
_DASHES = ("-", "--", ":", "-.", (0, (1, 3)))


def training_curves(runs: list[RunFiles]) -> str:
    """Loss, schedule and all measurements over epochs, with one color per run."""
    panels = [panel for panel in _PANELS if any(run.values(key)[1] for run in runs for key in panel[1])]
    with rc_context(_STYLE):
        figure = Figure(figsize=(7.6, 1.35 * len(panels) + 0.4), layout="constrained")
        axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axis, (title, keys, share) in zip(axes, panels, strict=True):
            _panel(axis, runs, title, keys, share)
        axes[-1].set_xlabel("epoch")
        return _svg(figure)


def _panel(axis: Any, runs: list[RunFiles], title: str, keys: dict[str, str], share: bool) -> None:
    lines = 0
    for color, run in zip(COLORS, runs, strict=False):
        of_run = f"{run.name}: " if len(runs) > 1 else ""
        curves = [(label, *run.values(key)) for key, label in keys.items() if run.values(key)[1]]
        for number, (label, epochs, values) in enumerate(curves):
            # One color per run; for a single run, one per curve.
            look: Any = {"color": color if of_run else COLORS[number % len(COLORS)], "linestyle": _DASHES[number]}
            mark = "o" if len(values) < 40 and title not in ("loss", "learning rate") else ""
            axis.plot(epochs, values, **look, marker=mark, markersize=3, label=of_run + label)
        _, raw = run.values("knn_raw_pixels")
        if "knn" in keys and raw:
            axis.axhline(raw[0], color=color, linestyle=":", linewidth=1.0, label=f"{of_run}raw pixels")
            lines += 1
        lines += len(curves)
    if "embedding_std" in keys:
        axis.axhspan(*_HEALTHY, color=COLORS[2], alpha=0.15, linewidth=0, label="healthy")
        axis.set_ylim(bottom=0)
        lines += 1
    axis.set_title(title, loc="left", fontsize=9)
    axis.yaxis.set_major_locator(MaxNLocator(4))
    axis.grid(axis="y", color=_INK, alpha=0.12, linewidth=0.6)
    if share:
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    if lines > 1:
        beside: Any = {"loc": "lower right", "bbox_to_anchor": (1.0, 0.94), "ncols": min(lines, 5)}
        axis.legend(frameon=False, fontsize=8, borderpad=0, **beside)


def singular_values(spectra: dict[str, np.ndarray]) -> str:
    """Singular values of centered features relative to the largest, in descending order; collapse shows as a cliff."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(7.6, 2.6), layout="constrained")
        axis = figure.subplots()
        for color, dash, (name, values) in zip(COLORS, ("-", "--", "-", "--"), spectra.items(), strict=False):
            axis.plot(np.arange(1, len(values) + 1), values, color=color, linestyle=dash, label=name)
        axis.set_yscale("log")
        axis.set_xlabel("index of the singular value")
        axis.grid(axis="y", color=_INK, alpha=0.12, linewidth=0.6)
        axis.legend(frameon=False, fontsize=8)
        return _svg(figure)


def _svg(figure: Figure) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :].replace(_INK, "currentColor")
