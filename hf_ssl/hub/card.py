# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""The model card of a run: what was measured, where, and the recipe that makes it again."""

import platform
from dataclasses import dataclass
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

from ..models import SSLConfig, rebuildable_by_timm
from ..recipe import Recipe


PAPERS = {
    "avid": ("AVID", "Audio-Visual Instance Discrimination with Cross-Modal Agreement", "2004.12943"),
    "barlow_twins": ("Barlow Twins", "Barlow Twins: Self-Supervised Learning via Redundancy Reduction", "2103.03230"),
    "byol": ("BYOL", "Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning", "2006.07733"),
    "simsiam": ("SimSiam", "Exploring Simple Siamese Representation Learning", "2011.10566"),
    "swav": ("SwAV", "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", "2006.09882"),
}

ROWS = (
    ("knn_raw_pixels", "kNN accuracy of raw pixels", "{:.1%}"),
    ("knn", "kNN accuracy", "{:.1%}"),
    ("knn_video", "kNN accuracy of the video tower", "{:.1%}"),
    ("knn_audio", "kNN accuracy of the audio tower", "{:.1%}"),
    ("video_to_audio_r1", "video to audio: own sound first of all", "{:.1%}"),
    ("audio_to_video_r1", "audio to video: own picture first of all", "{:.1%}"),
    ("video_to_audio_p1", "video to audio: first one of the same class", "{:.1%}"),
    ("audio_to_video_p1", "audio to video: first one of the same class", "{:.1%}"),
    ("positive_precision", "positive sets: same class", "{:.1%}"),
    ("loss", "loss", "{:.4g}"),
    ("embedding_std", "std of unit embeddings (1 = healthy, 0 = collapsed)", "{:.3f}"),
    ("effective_rank", "effective rank of features (RankMe)", "{:.1f}"),
    ("alignment", "alignment of two views (lower is closer)", "{:.3f}"),
    ("uniformity", "uniformity (lower is more uniform)", "{:.3f}"),
)


@dataclass(frozen=True)
class Results:
    """`results.json`: what was measured before and after training, and how the run was.

    `seconds` of training over all restarts; `num_examples` is None for a stream, which nobody has counted.
    """

    baseline: dict[str, Any]
    final: dict[str, Any]
    num_examples: int | None
    steps: int
    seconds: float
    hardware: str
    versions: dict[str, str]


def hardware(processes: int, device: str) -> str:
    """What a run is on, for `Results`."""
    cuda = device.startswith("cuda")
    return f"{processes} x {torch.cuda.get_device_name()}" if cuda else f"{processes} CPU process(es)"


def versions() -> dict[str, str]:
    """Those that decide a run's figures, for `Results`."""
    modules = (hf_ssl, torch, timm, transformers, datasets, accelerate)
    return {"Python": platform.python_version()} | {module.__name__: module.__version__ for module in modules}


def templates_folder() -> Path:
    """`model_cards/`: beside the package in a checkout, inside it in a wheel."""
    inside = Path(hf_ssl.__file__).parent / "model_cards"
    return inside if inside.is_dir() else Path(hf_ssl.__file__).parent.parent / "model_cards"


def render_card(config: SSLConfig, recipe: Recipe, results: Results, *, sharded: bool = False) -> str:
    """README.md of a repo folder, with Hub metadata; only figures of this run are in it.

    Args:
        sharded: the encoder's weights are in several files, which timm does not read by itself.
    """
    method, title, paper = PAPERS[recipe.method]
    plain, images = rebuildable_by_timm(config), isinstance(config, SSLConfig)
    kind = "images" if images else "clips"
    template = Template((templates_folder() / "template.md").read_text())
    return template.substitute(
        metadata=_metadata(recipe, plain, results.final).to_yaml(),
        method=method,
        title=title,
        paper=paper,
        backbone=config.backbone if images else f"{config.video_backbone} and {config.audio_backbone}",
        purpose=_PURPOSE[kind].format(config=config),
        data=_data_name(recipe),
        examples=f"{results.num_examples:,} {kind}" if results.num_examples else f"a stream of {kind}",
        kind=kind,
        steps=f"{results.steps:,}",
        batch_size=recipe.train.batch_size,
        seed=recipe.train.seed,
        usage=_usage(plain, images, sharded),
        results=_table(recipe, results.baseline, results.final),
        environment=_environment(results),
        recipe=recipe.shareable().to_yaml(),
    )


def _usage(plain: bool, images: bool, sharded: bool) -> str:
    if not plain:
        return _CODE_USAGE if images else _CLIP_USAGE
    return _PLAIN_USAGE.replace(*_ONE_FILE) if sharded else _PLAIN_USAGE


def _metadata(recipe: Recipe, plain: bool, final: dict[str, Any]) -> ModelCardData:
    method = PAPERS[recipe.method][0]
    results = None
    if "knn" in final:
        data = _data_name(recipe)
        results = [
            EvalResult(
                task_type="image-classification",
                dataset_type=data,
                dataset_name=data,
                metric_type="accuracy",
                metric_name=f"kNN accuracy (k={recipe.monitor.k}, T={recipe.monitor.temperature})",
                metric_value=round(100 * final["knn"], 2),
            )
        ]
    return ModelCardData(
        library_name="timm" if plain else "transformers",
        pipeline_tag="feature-extraction" if recipe.method == "avid" else "image-feature-extraction",
        tags=["timm", "transformers", "self-supervised-learning", recipe.method, "hf_ssl"],
        model_name=f"{method} {recipe.model.get('backbone', '')}".strip(),
        eval_results=results,
    )


def _data_name(recipe: Recipe) -> str:
    """The dataset's name without the folders of whoever trained."""
    path = recipe.monitor.path or recipe.data.path or "a dataset given from Python"
    return Path(path).name if Path(path).exists() else path


def _table(recipe: Recipe, baseline: dict[str, Any], final: dict[str, Any]) -> str:
    rows = ["| | untrained | trained |", "| --- | --- | --- |"]
    for key, label, form in ROWS:
        if key.startswith("knn") and key != "knn_raw_pixels":
            label += f" (k={recipe.monitor.k}, T={recipe.monitor.temperature})"
        cells = [form.format(values[key]) if key in values else "" for values in (baseline, final)]
        if any(cells):
            rows.append(f"| {label} | {cells[0]} | {cells[1]} |")
    return "\n".join(rows)


def _environment(results: Results) -> str:
    lines = [f"- Hardware: {results.hardware}"]
    if "CPU" not in results.hardware:
        lines.append(f"- Training time: {results.seconds / 60:.1f} minutes")
    lines.append("- " + ", ".join(f"{name} {version}" for name, version in results.versions.items()))
    return "\n".join(lines)


_PURPOSE = {
    "images": "It turns an image of {config.image_size} pixels into a feature vector for nearest-neighbour search, "
    "linear classifiers or fine-tuning.",
    "clips": "It turns {config.video_seconds:g} s of video ({config.num_frames} frames of {config.image_size} pixels) "
    "and {config.audio_seconds:g} s of sound into vectors that can be compared with each other, and into features for "
    "classifiers of either.",
}

_PLAIN_USAGE = """\
```python
from transformers import AutoModel, pipeline
import timm

encoder = AutoModel.from_pretrained("REPO")                       # no other code needed
encoder = timm.create_model("hf-hub:REPO", pretrained=True)       # the same in timm
features = pipeline("image-feature-extraction", model="REPO")("image.jpg")
```"""

_ONE_FILE = (  # and what stands for it where the weights are in several
    'encoder = timm.create_model("hf-hub:REPO", pretrained=True)       # the same in timm',
    "timm_model = encoder.timm_model                                   # timm by itself does not read several files",
)

_CODE_USAGE = """\
This encoder is not one that timm builds by name, so it comes with its code, which you are asked to trust:

```python
from transformers import AutoModel, pipeline

encoder = AutoModel.from_pretrained("REPO", trust_remote_code=True)
features = pipeline("image-feature-extraction", model="REPO", trust_remote_code=True)("image.jpg")
```"""

_CLIP_USAGE = """\
Both towers come with their code, which you are asked to trust, and read a video file with sound by PyAV
(`pip install av`):

```python
from transformers import AutoModel, AutoProcessor

processor = AutoProcessor.from_pretrained("REPO", trust_remote_code=True)
model = AutoModel.from_pretrained("REPO", trust_remote_code=True)
output = model(**processor("clip.mp4", return_tensors="pt"))      # output.video_embeds, output.audio_embeds
```"""
