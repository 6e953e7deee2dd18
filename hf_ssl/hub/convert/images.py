# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Conversion of methods for images, except their tensors: config fields."""

from typing import Any

from .backbones import backbone_fields
from .common import Tensors


WITHOUT_STATISTICS = None  # all methods normalize images alike


def config_fields(tensors: Tensors) -> dict[str, Any]:
    """Configuration fields detected from the network's tensors."""
    return {"interpolation": "bilinear"} | backbone_fields(tensors)
