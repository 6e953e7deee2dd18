# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""The model card of a run: its measurements, its environment, and the recipe to reproduce it."""

import json
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from string import Template
from typing import Any

import accelerate
import datasets
import timm
import torch
import transformers
from huggingface_hub import EvalResult, ModelCardData

import hf_ssl

from ..data.modality import modality_of
from ..methods import method_classes
from ..models import METHODS, SSLConfig, rebuildable_by_timm
from ..recipe import Recipe
from .evaluations import entries as entries_of
from .evaluations import section
from .published import published_section


SEER = "goyal2021seer goyal2022seer caron2020swav"  # citations of the "seer" views preset

ROWS = (
    ("knn_raw_pixels", "kNN accuracy of raw pixels", "{:.1%}"),
    ("knn", "kNN accuracy", "{:.1%}"),
    ("probe", "linear probe, trained online", "{:.1%}"),
    ("knn_video", "kNN accuracy of the video tower", "{:.1%}"),
    ("knn_audio", "kNN accuracy of the audio tower", "{:.1%}"),
    ("video_to_audio_r1", "video to audio R@1: own sound ranked first", "{:.1%}"),
    ("audio_to_video_r1", "audio to video R@1: own video ranked first", "{:.1%}"),
    ("video_to_audio_p1", "video to audio P@1: top result of the same class", "{:.1%}"),
    ("audio_to_video_p1", "audio to video P@1: top result of the same class", "{:.1%}"),
    ("positive_precision", "CMA positives of the same class", "{:.1%}"),
    ("loss", "loss", "{:.4g}"),
    ("embedding_std", "std of normalized embeddings (1 = healthy, 0 = collapsed)", "{:.3f}"),
    ("effective_rank", "effective rank of features (RankMe)", "{:.1f}"),
    ("alignment", "alignment of two views (lower is closer)", "{:.3f}"),
    ("uniformity", "uniformity (lower is more uniform)", "{:.3f}"),
)


@dataclass(frozen=True)
class Results:
    """`results.json`: measurements before and after training, and facts about the run.

    `seconds`: training time over all restarts. `num_examples`: None for a stream of unknown length. `card`: metadata
    set with `hf-ssl card` (`license`, `name`, `datasets`). `measured`: the examples used, see
    `hf_ssl.data.bank.measured_on`; empty in files of earlier versions.
    """

    baseline: dict[str, Any]
    final: dict[str, Any]
    num_examples: int | None
    steps: int
    seconds: float
    hardware: str
    versions: dict[str, str]
    card: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)


def hardware(processes: int, device: str) -> str:
    """Hardware of a run, for `Results`."""
    cuda = device.startswith("cuda")
    return f"{processes} x {torch.cuda.get_device_name()}" if cuda else f"{processes} CPU process(es)"


def versions() -> dict[str, str]:
    """Versions of the packages that affect a run, for `Results`."""
    modules = (hf_ssl, torch, timm, transformers, datasets, accelerate)
    return {"Python": platform.python_version()} | {module.__name__: module.__version__ for module in modules}


def templates_folder() -> Path:
    """`model_cards/`: next to the package in a checkout, inside it in a wheel."""
    inside = Path(hf_ssl.__file__).parent / "model_cards"
    return inside if inside.is_dir() else Path(hf_ssl.__file__).parent.parent / "model_cards"


def entries(subject: str) -> str:
    """BibTeX of a method, or of "seer"; a method's class has the entries, or their keys in citations.bib."""
    cited = SEER if subject == "seer" else method_classes(subject)[1].citation
    if "@" in cited:
        return cited.strip()
    known = (templates_folder() / "citations.bib").read_text().strip().split("\n\n")
    found = {entry.partition("{")[2].partition(",")[0]: entry for entry in known}
    return "\n\n".join(found[key] for key in cited.split())


def bibtex(subject: str) -> str:
    """BibTeX of a method, or of "seer", as a fenced block."""
    return f"```bibtex\n{entries(subject)}\n```"


def paper_link(method: str) -> str:
    """Link to a method's paper, with the title from its BibTeX."""
    model_class = method_classes(method)[1]
    found = re.search(r"\btitle\s*=\s*\{(.+)\},?$", entries(method), re.MULTILINE)
    return f"[{found[1] if found else model_class.title}]({model_class.paper})"


def render_card(
    config: SSLConfig,
    recipe: Recipe,
    results: Results,
    *,
    sharded: bool = False,
    evaluations: Sequence[dict[str, Any]] = (),
) -> str:
    """README.md of a repo folder, with Hub metadata; all figures except published ones are from this run.

    Args:
        recipe: the recipe to publish, `recipe.shareable()`.
        sharded: the encoder's weights are in several files, which timm cannot read by itself.
        evaluations: later evaluations, see `hf_ssl.hub.evaluations`.
    """
    method = method_classes(recipe.method)[1].title
    plain, modality = rebuildable_by_timm(config), modality_of(config)
    words, kind, backbone = modality.half(__package__), modality.name, " and ".join(config.backbones)
    template = Template((templates_folder() / "template.md").read_text())
    text = template.substitute(
        metadata=_metadata(recipe, words.PIPELINE_TAG, plain, results, evaluations).to_yaml(),
        name=results.card.get("name", f"{method}, {backbone}"),
        paper=paper_link(recipe.method),
        backbone=backbone,
        purpose=words.PURPOSE.format(config=config),
        data=", ".join(results.card.get("datasets", ())) or recipe.data.path or _UNNAMED,
        examples=f"{results.num_examples:,} {kind}" if results.num_examples else f"a stream of {kind}",
        kind=kind,
        steps=f"{results.steps:,}",
        batch_size=f"{recipe.train.batch_size:,}",
        usage=words.usage(plain, sharded),
        results="\n\n".join(filter(None, (_results(recipe, results), section(evaluations)))),
        published=published_section(recipe, results.final.get("knn")),
        environment=_environment(results),
        recipe=recipe.to_yaml().strip(),
        license=_LICENSED.format(**results.card) if "license" in results.card else _UNLICENSED,
        citation=bibtex("seer" if recipe.views.preset == "seer" else recipe.method),
    )
    return re.sub(r"\n{3,}", "\n\n", text)  # left by empty sections


def render_converted(
    config: SSLConfig, origin: dict[str, str], left_out: list[str], subfolders: list[str], *, sharded: bool = False
) -> str:
    """README.md of a repo folder converted from an original checkpoint; it has no figures.

    Args:
        origin: the checkpoint's `file`, its `project` ("" if unknown) and `license`, and the `command`.
        left_out: entries of the file that were not converted.
        subfolders: those of "pretraining" and "classification" that exist.
    """
    method = METHODS[config.model_type][1].title
    plain, words, backbone = rebuildable_by_timm(config), modality_of(config).half(__package__), config.backbones
    classes = {"pretraining": "AutoModelForPreTraining", "classification": "AutoModelForImageClassification"}
    load = '{}.from_pretrained("REPO", subfolder="{}", trust_remote_code=True)'
    metadata = ModelCardData(
        library_name="timm" if plain else "transformers",
        pipeline_tag=words.PIPELINE_TAG,
        tags=["timm", "transformers", "self-supervised-learning", config.model_type, "hf_ssl"],
    )
    return Template((templates_folder() / "converted.md").read_text()).substitute(
        origin | {"project": origin["project"] or "an unknown project"},
        metadata=metadata.to_yaml(),
        name=f"{method}, {' and '.join(backbone)}",
        paper=paper_link(config.model_type),
        usage=words.usage(plain, sharded),
        inputs=words.inputs(config),
        parts="\n".join(f"- `{load.format(classes[name], name)}`" for name in subfolders) or "- nothing",
        left_out=", ".join(left_out) or "nothing",
        citation=bibtex("seer" if backbone[0].startswith("regnet") else config.model_type),
    )


def _metadata(
    recipe: Recipe, pipeline_tag: str, plain: bool, results: Results, evaluations: Sequence[dict[str, Any]]
) -> ModelCardData:
    config_class, model_class = method_classes(recipe.method)
    method = model_class.title
    said = {"name": f"{method} {recipe.model.get('backbone', '')}".strip()} | results.card
    measured = entries_of(evaluations)
    if "knn" in results.final and results.measured.get("num_classes") != 1:  # with one class, any encoder gets 100 %
        data = _evaluated_on(recipe)
        measured.append(
            EvalResult(
                task_type="image-classification",
                dataset_type=data,
                dataset_name=data,
                dataset_split=results.measured.get("queries", recipe.monitor.query_split),
                metric_type="accuracy",
                metric_name=f"kNN accuracy (k={recipe.monitor.k}, T={recipe.monitor.temperature})",
                metric_value=round(100 * results.final["knn"], 2),
            )
        )
    return ModelCardData(
        license=said.get("license"),
        library_name="timm" if plain else "transformers",
        pipeline_tag=pipeline_tag,
        tags=["timm", "transformers", "self-supervised-learning", config_class.model_type, "hf_ssl"],
        datasets=said.get("datasets", _hub_ids(*recipe.data.paths)),
        base_model=_hub_ids(recipe.train.init_from, recipe.model.get("init_from")),
        model_name=said["name"],
        eval_results=measured or None,
    )


def _hub_ids(*places: str | None) -> list[str] | None:
    """Hub ids among the places of a shared recipe, where only Hub ids have a slash."""
    return [place for place in places if place and "/" in place] or None


def _evaluated_on(recipe: Recipe) -> str:
    return recipe.monitor.path or recipe.data.path or _UNNAMED


def _results(recipe: Recipe, results: Results) -> str:
    """The results table, and how its figures were measured."""
    final, measured = results.final, results.measured
    where = _part(measured, "queries", recipe.monitor.query_split)
    how = f"Measured once (seed {recipe.train.seed}), after the last step; these figures selected no checkpoint. "
    if "knn" in final:
        bank = _part(measured, "bank", recipe.monitor.bank_split)
        how += "kNN: weighted vote of the nearest images by cosine similarity, with a frozen encoder; neighbors from "
        how += f"{bank}, queries from {where}, of {_evaluated_on(recipe)}."
        if "probe" in final:
            how += " The linear probe was trained during pretraining, on other labeled training images; no gradient "
            how += "flows from it into the encoder."
    elif "video_to_audio_r1" in final:
        how += f"Each clip is used to retrieve its other modality, by cosine similarity, from {where}, of "
        how += f"{_evaluated_on(recipe)}."
    else:
        how += "The figures come from the last training batches. No accuracy was measured; run `hf-ssl evaluate` on "
        how += "labeled data."
    notes = "".join(f"\n- {note}" for note in measured.get("notes", ()))
    return f"{_table(recipe, results.baseline, final)}\n\n{how}" + (f"\n\nNotes:\n{notes}" if notes else "")


def _part(measured: dict[str, Any], side: str, split: str) -> str:
    """Name of the bank or the queries; files of earlier versions only have the recipe's split."""
    name = measured.get(side, split)
    text = f"the split `{name}`" if re.fullmatch(r"[\w.-]+", name) else name
    return f"{text} ({measured[f'num_{side}']:,})" if side in measured else text


def _table(recipe: Recipe, baseline: dict[str, Any], final: dict[str, Any]) -> str:
    rows = [f"| | {recipe.start} | trained |", "| --- | --- | --- |"]
    for key, label, form in ROWS:
        if key.startswith("knn") and key != "knn_raw_pixels":
            label += f" (k={recipe.monitor.k}, T={recipe.monitor.temperature})"
        cells = [form.format(values[key]) if key in values else "" for values in (baseline, final)]
        if any(cells):
            rows.append(f"| {label} | {cells[0]} | {cells[1]} |")
    return "\n".join(rows)


def _environment(results: Results) -> str:
    lines = [f"- Hardware: {results.hardware}", f"- Training time: {_duration(results.seconds)}, without measurements"]
    lines.append("- " + ", ".join(f"{name} {version}" for name, version in results.versions.items()))
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    for unit, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.1f} seconds"


_UNNAMED = "a dataset passed from Python"

_LICENSED = "License of the weights, set by the person who shares them: `{license}`."

_UNLICENSED = (
    "The weights have no license yet; to set one, run `hf-ssl card FOLDER --license apache-2.0` before sharing them."
)
