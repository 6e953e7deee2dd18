# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""What the conversion of a method of images takes beside its tensors."""

from typing import Any

from .backbones import backbone_fields
from .common import Tensors


WITHOUT_STATISTICS = None  # images of all methods are normalized alike


def config_fields(tensors: Tensors) -> dict[str, Any]:
    """Of the configuration, as the tensors of the network tell them."""
    return {"interpolation": "bilinear"} | backbone_fields(tensors)
