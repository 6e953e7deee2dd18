# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""facebookresearch/vissl: SwAV on ResNets and RegNets, and SEER up to ten billion parameters.

`classy_state_dict.base_model.model.{trunk,heads}`; a "slice_list" has a file name in place of every tensor. Trunks of
large RegNets insert `.block{stage}-part{group}`: groups of blocks for activation checkpointing.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...recipe import RecipeError
from .backbones import resnet
from .common import Layout, Original, Tensors, left_out, listed, read_file
from .swav import swav_fields


_BLOCK = (
    ("proj", "downsample.conv"),
    ("bn", "downsample.bn"),
    ("f.a.0", "conv1.conv"),
    ("f.a.1", "conv1.bn"),
    ("f.b.0", "conv2.conv"),
    ("f.b.1", "conv2.bn"),
    ("f.se.excitation.0", "se.fc1"),
    ("f.se.excitation.2", "se.fc2"),
    ("f.c", "conv3.conv"),
    ("f.final_bn", "conv3.bn"),
)
_T, _B = "trunk._feature_blocks.", "encoder.backbone."
_PART = re.compile(r"\.block(\d+)-part(\d+)(\.block\1-(\d+)\.)")


def _fields(tensors: Tensors, content: Any) -> dict[str, Any]:
    fields = swav_fields(tensors, content)
    if len(fields.get("projector_dims", ())) == 3:  # SEER
        ten_billion = tuple(tensors["projector.0.weight"].shape[1:]) == (28280,)
        fields |= {"sinkhorn_iterations": 10, "epsilon": 0.03 if ten_billion else 0.05}
    return fields


@dataclass(frozen=True)
class Vissl(Layout):
    """`grouped` writes block groups as in the original file, or one group per stage if they are unknown."""

    grouped: bool = False

    def recognizes(self, content: Any) -> bool:
        return isinstance(content, dict) and not {"classy_state_dict", "layers", "shards"}.isdisjoint(content)

    def read(self, content: Any, path: Path) -> Original:
        if "shards" in content or content.get("type") == "shard":
            raise RecipeError(
                f"{path} is sharded by process; consolidate it with VISSL's "
                "extra_scripts/convert_sharded_checkpoint.py first."
            )
        model, others = _model(content)
        flat = {
            f"{part}.{name}": _slice(value, path) if isinstance(value, str) else value
            for part, weights in model.items()
            for name, value in weights.items()
        }
        plain = {_PART.sub(r"\3", name): tensor for name, tensor in flat.items()}
        if len(plain) < len(flat):
            raise RecipeError(f"{path} has the same block in two groups.")
        found = self.ours(plain)
        if {"prototypes.weight", "prototypes.1.weight"} <= found.tensors.keys():
            for part in (found.tensors, found.names):
                part["prototypes.0.weight"] = part.pop("prototypes.weight")
        found.left_out, found.fields = others, self.fields(found.tensors, content)
        parts = {f"{m[1]}-{m[4]}": m[2] for m in map(_PART.search, flat) if m}
        found.facts = {"layout": "vissl-grouped", "parts": parts} if parts else {}
        return found

    def write(self, tensors: dict[str, Any], config: Any, facts: dict[str, Any]) -> Any:
        parts, model = facts.get("parts", {}), {"trunk": {}, "heads": {}}
        group = lambda m: f".block{m[2]}-part{parts.get(f'{m[2]}-{m[3]}', 0)}{m[1]}"  # noqa: E731
        for name, tensor in super().write(tensors, config, facts).items():
            part, _, name = name.partition(".")
            model[part][re.sub(r"(\.block(\d+)-(\d+)\.)", group, name) if self.grouped else name] = tensor
        return {"type": "consolidated", "classy_state_dict": {"base_model": {"model": model}}}


def _model(content: dict[str, Any]) -> tuple[dict[str, dict], list[str]]:
    """Trunk and heads, and the names of all other entries."""
    if isinstance(content.get("layers"), dict):
        return {"trunk": content["layers"]}, left_out(content, {"layers", "type"})
    others, where = [], ""
    for key in ("classy_state_dict", "base_model", "model"):
        others += left_out(content, {key, "type"}, where)
        content, where = content.get(key), f"{where}{key}."
        if not isinstance(content, dict):
            raise RecipeError(f"The checkpoint has no {where[:-1]}.")
    if not set(content) <= {"trunk", "heads"} or not all(isinstance(part, dict) for part in content.values()):
        raise RecipeError(f"{where[:-1]} must contain trunk and heads, but contains {listed(map(str, content))}.")
    return content, others


def _slice(place: str, path: Path) -> Any:
    """Load a sliced tensor from the list's own folder, since the stored path is from another machine."""
    parts = Path(place.replace("\\", "/")).parts[-2:]
    for file in (path.parent.joinpath(*parts[-1:]), path.parent.joinpath(*parts)):
        if file.is_file() and file.resolve().is_relative_to(path.parent.resolve()) and file != path:
            content = read_file(file)
            return content.get("weight") if isinstance(content, dict) else content
    raise RecipeError(f"{path} needs the file {'/'.join(parts)}, which is not in the same folder.")


_LAYOUT = {
    "method": "swav",
    "project": "https://github.com/facebookresearch/vissl",
    "license": "The project's code is under the MIT license; SEER's weights have a non-commercial one of their own "
    "(the SEER license). For these weights, see the original.",
    "mark": "",
    "pairs": (
        (f"{_T}conv1.stem.0.{{*x}}", f"{_B}stem.conv.{{*x}}"),
        (f"{_T}conv1.stem.1.{{*x}}", f"{_B}stem.bn.{{*x}}"),
        *((_T + "res{s+1}.block{s}-{b}." + a + ".{*x}", _B + "s{s}.b{b+1}." + b + ".{*x}") for a, b in _BLOCK),
        *resnet(_T),
        ("heads.0.projection_head.{j}.{*x}", "projector.{j}.{*x}"),
        ("heads.0.prototypes0.weight", "prototypes.weight"),  # with a single prototype layer
        ("heads.0.prototypes{i}.weight", "prototypes.{i}.weight"),
        ("heads.0.clf.0.{*x}", "classifier.{*x}"),
    ),
    "fields": _fields,
    "prefix": "",
    "ignored": "(?!.)",
}
vissl, vissl_grouped = Vissl("vissl", **_LAYOUT), Vissl("vissl-grouped", **_LAYOUT, grouped=True)
