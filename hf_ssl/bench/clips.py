# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""What reading a clip costs before its frames are cut."""

from typing import Any

from ..data.clips import read_clip
from ..models.media_avid import even_draws


def decode(source: Any, index: int, config: Any) -> None:
    """From the file to the frames and the sound of one clip."""
    read_clip(source.record(index), even_draws(1), config, 0.0, source.max_megapixels)
