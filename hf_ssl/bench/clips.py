# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Cost of reading a clip, before cropping."""

from typing import Any

from ..data.clips import read_clip
from ..models.media_avid import even_draws


def decode(source: Any, index: int, config: Any) -> None:
    """Decode the frames and sound of one clip from its file."""
    read_clip(source.record(index), even_draws(1), config, 0.0, source.max_megapixels)
