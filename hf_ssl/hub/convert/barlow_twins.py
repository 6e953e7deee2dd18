# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""facebookresearch/barlowtwins: `checkpoint.pth`. Its `resnet50.pth` is a plain torchvision ResNet."""

from .backbones import resnet
from .common import Layout, head_widths


barlow_twins = Layout(
    "barlow_twins",
    "barlow_twins",
    "https://github.com/facebookresearch/barlowtwins",
    "The project's code is under the MIT license; for the weights, see the original.",
    mark="backbone.",
    pairs=(*resnet("backbone."), ("projector.{j}.{*x}", "projector.{j}.{*x}"), ("bn.{*x}", "bn.{*x}")),
    fields=lambda tensors, content: {"projector_dims": head_widths(tensors, "projector") or (8192, 8192, 8192)},
    container="model",
)
