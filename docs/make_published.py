# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Writes published.md and its figures: what others have published, from model_cards/ and recipes/, and what our own
small RegNets do, from recipes/results/regnets.jsonl. Run it as `python docs/make_published.py`.
"""

import json
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from matplotlib import rc_context
from matplotlib.figure import Figure

from hf_ssl.hub.published import published_rows
from hf_ssl.models.backbones_ssl import create_backbone
from hf_ssl.recipe import load_recipe
from hf_ssl.resolve import resolve


DOCS = Path(__file__).parent
ROOT = DOCS.parent
_NAMES = {"regnety_320": "RG-32", "regnety_640": "RG-64", "regnety_1280": "RG-128"}
_NAMES |= {"regnety_2560": "RG-256", "regnety_10b": "RG-10B"}
COLORS = ("#1f6fc0", "#7fb2e5", "#3a9d5d", "#8a929c", "#d9822b")
INK = "#6b7482"  # reads on white and on black: the figures stand on either


def seer_2022() -> dict[str, Any]:
    """SEER's fine-tuned figures of 2022 from its cards, with the parameters of the encoders that our recipes build."""
    rows = []
    for name in _NAMES:
        card = (ROOT / "model_cards" / "seer" / f"{name}.md").read_text(encoding="utf-8")
        found = re.search(r"\| fine-tuned at 384 pixels \| ([\d.]+) \|", card)
        assert found, f"the card of {name} has no fine-tuned figure"
        config = resolve(load_recipe(ROOT / "recipes" / "seer" / f"{name}.yaml", ["data.path=x"])).config
        with torch.device("meta"):
            count = sum(p.numel() for p in create_backbone(config).parameters())
        rows.append({"name": _NAMES[name], "params": round(count / 1e6), "top1": float(found[1])})
    return {
        "group": "SEER, 2022, at 384 pixels",
        "source": "arXiv:2202.08360; VISSL's model documentation",
        "rows": rows,
    }


def small_regnets() -> list[dict[str, Any]]:
    """Means of our own runs by backbone, smallest first; none where nothing was run."""
    file = ROOT / "recipes" / "results" / "regnets.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    found = []
    for name in dict.fromkeys(line["backbone"] for line in lines):
        own = [line for line in lines if line["backbone"] == name]
        row = {"backbone": name, "params": own[0]["params"], "seeds": len(own)}
        for key in ("finetuned", "from_scratch", "knn"):
            values = [line[key] for line in own]
            error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
            row[key] = (statistics.fmean(values), error)
        found.append(row)
    return sorted(found, key=lambda row: row["params"])


def figure(groups: list[dict[str, Any]], keys: dict[str, str], path: Path, ylabel: str) -> None:
    """Accuracy against parameters; the groups in colors, the keys in line styles."""
    style: Any = {"svg.fonttype": "none", "font.size": 9, "svg.hashsalt": path.name}
    style |= dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    with rc_context(style):
        plot = Figure(figsize=(7.6, 4.2), layout="constrained")
        axis = plot.subplots()
        for color, group in zip(COLORS, groups, strict=False):
            for line, (key, label) in zip(("-", "--"), keys.items(), strict=False):
                points = sorted((row["params"], row[key], row["name"]) for row in group["rows"])
                joined = line if group["group"].startswith(("SEER", "ours")) else ""
                axis.plot(*zip(*[p[:2] for p in points], strict=True), color=color, linestyle=joined, marker="o",
                          markersize=4, label=f"{group['group']}{label}")  # fmt: skip
                for x, y, name in points:
                    axis.annotate(
                        name,
                        (x, y),
                        xytext=(4, -9 if joined else 4),
                        textcoords="offset points",
                        fontsize=6.5,
                        color=color,
                    )
        axis.set_xscale("log")
        axis.set_xlabel("parameters, millions")
        axis.set_ylabel(ylabel)
        axis.grid(color=INK, alpha=0.2, linewidth=0.5)
        axis.legend(frameon=False, fontsize=7.5)
        path.parent.mkdir(exist_ok=True)
        plot.savefig(path, format="svg", transparent=True, metadata={"Date": None})


def tables(groups: list[dict[str, Any]], columns: dict[str, str]) -> Iterator[str]:
    yield f"| | parameters (M) | {' | '.join(columns.values())} | source |"
    yield f"| --- | ---: | {' | '.join('---:' for _ in columns)} | --- |"
    for group in groups:
        for number, row in enumerate(sorted(group["rows"], key=lambda row: row["params"])):
            figures = " | ".join(str(row[key]) for key in columns)
            yield f"| {row['name']} | {row['params']:,} | {figures} | {'' if number else group['source']} |"


def audio_visual() -> Iterator[str]:
    yield "| recipe | UCF-101, fine-tuned | HMDB-51, fine-tuned | Kinetics-400, linear |"
    yield "| --- | ---: | ---: | ---: |"
    for name in ("kinetics400_avid", "kinetics400_cma", "audioset_avid", "audioset_cma"):
        figures = {
            k: v for row in published_rows(ROOT / "recipes/avid" / f"{name}.yaml") for k, v in row.figures.items()
        }
        yield f"| `avid/{name}` | {' | '.join(figures.values())} |"


def small(rows: list[dict[str, Any]]) -> Iterator[str]:
    def shown(value: tuple[float, float | None]) -> str:
        return f"{100 * value[0]:.1f}" + (f" ±{100 * value[1]:.1f}" if value[1] is not None else "")

    yield "| backbone | parameters (M) | seeds | fine-tuned from SwAV | from scratch | kNN, frozen |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    for row in rows:
        cells = " | ".join(shown(row[key]) for key in ("finetuned", "from_scratch", "knn"))
        yield f"| `{row['backbone']}` | {row['params'] / 1e6:.1f} | {row['seeds']} | {cells} |"


def main() -> None:
    content = yaml.safe_load((ROOT / "model_cards" / "comparisons.yaml").read_text(encoding="utf-8"))
    tuned = [seer_2022(), *content["finetuned"]]
    figure(tuned, {"top1": ""}, DOCS / "images" / "seer_finetuned.svg", "ImageNet-1k top-1, fine-tuned, %")
    figure(content["lowshot"], {"ten": ", 10 %", "one": ", 1 %"}, DOCS / "images" / "seer_lowshot.svg", "top-1, %")
    ours = small_regnets()
    if ours:
        group = [{"group": f"ours, {label}", "rows": [
            {"name": row["backbone"], "params": row["params"] / 1e6, "top1": 100 * row[key][0]} for row in ours
        ]} for key, label in (("finetuned", "SwAV"), ("from_scratch", "from scratch"))]  # fmt: skip
        figure(group, {"top1": ""}, DOCS / "images" / "regnets.svg", "Caltech-101 top-1, fine-tuned, %")
    text = (DOCS / "published_template.md").read_text(encoding="utf-8")
    parts = {
        "finetuned": tables(tuned, {"top1": "top-1, %"}),
        "lowshot": tables(content["lowshot"], {"one": "1 % of labels", "ten": "10 %"}),
        "avid": audio_visual(),
        "small": small(ours) if ours else ["Not measured."],
    }
    for name, lines in parts.items():
        text = text.replace(f"{{{name}}}", "\n".join(lines))
    (DOCS / "published.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
