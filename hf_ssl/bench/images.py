# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Cost of reading an image, before cropping."""

from typing import Any

from ..data.pixels import to_channels


def decode(source: Any, index: int, config: Any) -> None:
    """Decode the file to 8-bit pixels of the whole image."""
    to_channels(source.image(index), config.num_channels, source.decoding)
