# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""facebookresearch/AVID-CMA: two towers and their heads.

`train_criterion` has the memories and positive sets, whose rows follow the authors' list of files, and Z. They are
useless with other data, so they are dropped, and training refills them. The spectrogram statistics are in the code
repository, `datasets/assets/audio-spectDB-24k-513-norm-stats.npz`: 257 means and standard deviations in dB.
"""

import re
from dataclasses import dataclass
from typing import Any

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
        """The depth-10 network has one block per stage, so its names have no block numbers."""
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
