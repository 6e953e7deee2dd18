# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""What the conversion of a method of images takes beside its tensors."""

from pathlib import Path
from typing import Any

from ...errors import RecipeError
from .backbones import backbone_fields
from .common import Tensors


WITHOUT_STATISTICS = None


def config_fields(tensors: Tensors) -> dict[str, Any]:
    """Of the configuration, as the tensors of the network tell them."""
    return {"interpolation": "bilinear"} | backbone_fields(tensors)


def read_statistics(path: Path) -> dict[str, list[float]]:
    """Raises RecipeError: the images of all methods are normalized alike."""
    raise RecipeError(f"--statistics is the file of AVID's spectrogram; leave {path} out.")
