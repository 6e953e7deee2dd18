# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""facebookresearch/swav: ResNets, up to 5 times as wide, and the linear classifier of its evaluation."""

from typing import Any

from .backbones import resnet
from .common import Layout, Tensors, head_widths


def swav_fields(tensors: Tensors, content: Any) -> dict[str, Any]:
    """Projector and prototypes, if the file has them."""
    widths, several = head_widths(tensors, "projector"), head_widths(tensors, "prototypes")
    prototypes = tensors.get("prototypes.weight")
    if not widths or not (several or (prototypes is not None and prototypes.dim() == 2)):
        return {}
    norm = any(name.startswith("projector.") and name.endswith("running_mean") for name in tensors)
    return {"projector_dims": widths, "projector_batch_norm": norm, "num_prototypes": several or len(prototypes)}


# The network was trained and evaluated with a typo in the first number.
_STD = {"image_std": (0.228, 0.224, 0.225)}
_ORIGIN = (
    "swav",
    "https://github.com/facebookresearch/swav",
    "The project's repository is under CC BY-NC 4.0; for the weights, see the original.",
)
_HEADS = (
    ("projection_head.{j}.{*x}", "projector.{j}.{*x}"),
    ("prototypes.weight", "prototypes.weight"),
    ("prototypes.prototypes{i}.weight", "prototypes.{i}.weight"),
)

swav = Layout(
    "swav",
    *_ORIGIN,
    mark="projection_head.",
    pairs=(*_HEADS, *resnet("")),
    fields=lambda tensors, content: swav_fields(tensors, content) | _STD,
)
swav_linear = Layout(
    "swav-linear",
    *_ORIGIN,
    mark="linear.",
    pairs=(("linear.{*x}", "classifier.{*x}"),),
    container="state_dict",
    ignored=r"(?!classifier\.).*",
)
