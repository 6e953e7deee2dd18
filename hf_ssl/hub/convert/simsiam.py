# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""facebookresearch/simsiam, whose projector is the `fc` of its ResNet."""

from typing import Any

from .backbones import resnet
from .common import Layout, Tensors, head_widths


def _fields(tensors: Tensors, content: Any) -> dict[str, Any]:
    projector, predictor = head_widths(tensors, "projector"), head_widths(tensors, "predictor")
    if not projector or not predictor:
        return {}
    return {
        "projector_dim": projector[-1],
        "projector_hidden": projector[0],
        "projector_layers": len(projector),
        "predictor_hidden": predictor[0],
    }


simsiam = Layout(
    "simsiam",
    "simsiam",
    "https://github.com/facebookresearch/simsiam",
    "The project's repository is under CC BY-NC 4.0; for the weights, see the original.",
    mark="encoder.",
    pairs=(
        ("encoder.fc.{j}.{*x}", "projector.{j}.{*x}"),
        *resnet("encoder."),
        ("predictor.{j}.{*x}", "predictor.{j}.{*x}"),
    ),
    fields=_fields,
    container="state_dict",
)
