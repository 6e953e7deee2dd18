# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""facebookresearch/AVID-CMA: two towers and their heads.

`train_criterion` has memories and positive sets, whose rows follow the authors' list of files, and Z: of no use to
others. They are left out, and training on refills them. What the spectrogram is normalized by is in a file beside the
code, `datasets/assets/audio-spectDB-24k-513-norm-stats.npz`: 257 means and deviations in dB.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...recipe import RecipeError
from .common import Layout, Tensors, head_widths


_VIDEO = (
    ("spt_conv1", "spatial1"),
    ("spt_bn1", "spatial_norm1"),
    ("tmp_conv1", "temporal1"),
    ("tmp_bn1", "temporal_norm1"),
    ("spt_conv2", "spatial2"),
    ("spt_bn2", "spatial_norm2"),
    ("tmp_conv2", "temporal2"),
    ("out_bn", "norm"),
    ("res_conv", "shortcut"),
)
_AUDIO = (("conv1", "0"), ("bn1", "1"), ("conv2", "3"), ("bn2", "4"))
_V, _A = "encoder.video_tower.backbone.", "encoder.audio_tower.backbone."


WITHOUT_STATISTICS = (
    "The spectrogram is normalized by the average of all bands, not by each band's own mean and deviation, which the "
    "released networks were trained with: their inputs, and so their features, are shifted by up to 1.4 deviations a "
    "band. Give the authors' datasets/assets/audio-spectDB-24k-513-norm-stats.npz as --statistics."
)


def read_statistics(path: Path) -> dict[str, list[float]]:
    """`audio_mean` and `audio_std` of the configuration, a number a band, from the authors' file of two arrays.

    Raises:
        RecipeError: no such file, or one that does not hold 257 means and positive deviations.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            mean, std = (np.asarray(content[name], dtype=np.float64) for name in ("mean", "std"))
    except FileNotFoundError:
        raise RecipeError(f"There is no file {path}.") from None
    except Exception as error:  # whatever a broken or hostile file brings about
        raise RecipeError(f"{path} is no .npz file with the arrays mean and std ({type(error).__name__}).") from error
    if mean.shape != (257,) or std.shape != (257,):
        raise RecipeError(
            f"{path} has the statistics of {mean.size} bands, and the released networks hear 257: theirs are in "
            "audio-spectDB-24k-513-norm-stats.npz (the file with 257 in its name has 129)."
        )
    if not np.isfinite([mean, std]).all() or (std <= 0).any():
        raise RecipeError(f"{path} has means or deviations that are no finite numbers, or deviations of 0 or less.")
    return {"audio_mean": mean.tolist(), "audio_std": std.tolist()}


def _fields(tensors: Tensors, content: Any) -> dict[str, Any]:
    blocks = {m[1] for name in tensors if (m := re.match(re.escape(_V) + r"stages\.0\.(\d+)\.", name))}
    return {
        "video_backbone": {1: "r2plus1d_10", 3: "r2plus1d_34"}.get(len(blocks), "r2plus1d_18"),
        "projector_dims": head_widths(tensors, "encoder.video_projector") or (512, 512, 128),
        "cma": any(str(name).endswith("positive_set") for name in content.get("train_criterion") or ()),
    }


@dataclass(frozen=True)
class Avid(Layout):
    def write(self, tensors: dict[str, Any], config: Any, facts: dict[str, Any]) -> Any:
        """The network of depth 10 has one block a stage, and no numbers of blocks in its names."""
        content = super().write(tensors, config, facts)
        if config.video_backbone == "r2plus1d_10":
            content["model"] = {re.sub(r"(conv\dx)\.0\.", r"\1.", name): t for name, t in content["model"].items()}
        return content


avid = Avid(
    "avid",
    "avid",
    "https://github.com/facebookresearch/AVID-CMA",
    "Code and weights are under CC BY-NC 4.0.",
    mark="video_model.",
    pairs=(
        ("video_model.conv1.{i}.{*x}", _V + "stem.{i}.{*x}"),
        ("audio_model.conv1.{i}.{*x}", _A + "stem.{i}.{*x}"),
        *(("video_model.conv{s+2}x.{b}." + a + ".{*x}", _V + "stages.{s}.{b}." + b + ".{*x}") for a, b in _VIDEO),
        *(("video_model.conv{s+2}x." + a + ".{*x}", _V + "stages.{s}.0." + b + ".{*x}") for a, b in _VIDEO),
        *(("audio_model.block{s+1}." + a + ".{*x}", _A + "stages.{s}." + b + ".{*x}") for a, b in _AUDIO),
        *(
            (f"{m}_proj.projection.{{j}}.{kind}", f"encoder.{m}_projector.{{j}}.{kind}")
            for m in ("video", "audio")
            for kind in ("weight", "bias")
        ),
    ),
    fields=_fields,
    container="model",
)
