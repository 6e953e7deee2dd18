# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Facts about one file of a dataset, found by reading it as training does."""

import hashlib
import io
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import xxhash

from ..data.clips import eval_sound, opened_file, read_clip
from ..data.deep_pixels import number_type
from ..data.pixels import open_image, to_channels, upright_size
from ..disk import first_line
from ..models.configuration_avid import AvidConfig
from ..models.media_avid import even_draws, import_av


@dataclass(slots=True)
class Facts:
    """Args:
    broken: why training would skip it.
    content: digest of its bytes, if it is local.
    cost: seconds to read and decode it.
    side: shorter side in pixels.
    seconds: duration of a video or sound.
    kinds: values of properties ("mode" -> "RGB").
    """

    broken: str | None = None
    content: int | None = None
    cost: float = 0.0
    side: int | None = None
    seconds: float | None = None
    kinds: dict[str, str] = field(default_factory=dict)


def facts_of(record: dict[str, Any] | None, kind: str, source: Any) -> Facts:
    """Facts about an encoded image, video or sound, read as `source` does."""
    facts, began = Facts(), time.perf_counter()
    try:
        _LOOKS[kind](record, source, facts)
    except Exception as error:  # decoders may raise anything; the loader skips the file, too
        facts.broken = first_line(error)
    facts.cost = time.perf_counter() - began
    return facts


def _look_at_image(record: dict[str, Any] | None, source: Any, facts: Facts) -> None:
    if record is not None and record["bytes"] is None and "image" not in record:
        with open(record["path"], "rb") as file:
            record = {**record, "bytes": file.read()}
    if record is not None and record["bytes"] is not None:
        facts.content = xxhash.xxh3_64_intdigest(record["bytes"])
    image = open_image(record, source.max_megapixels)
    deep = number_type(image)
    facts.kinds = {"format": image.format or "-", "mode": image.mode, "pixels": deep.name if deep else "8-bit"}
    facts.side = min(upright_size(image, source.decoding))
    to_channels(image, 3, source.decoding)


def _look_at_video(record: dict[str, Any] | None, source: Any, facts: Facts) -> None:
    """Decode one clip of the published length."""
    _look_at_streams(record, facts)
    read_clip(record, even_draws(1), AvidConfig(), 0.0, source.max_megapixels)


def _look_at_sound(record: dict[str, Any] | None, source: Any, facts: Facts) -> None:
    """Decode one sound of the published length."""
    _look_at_streams(record, facts)
    eval_sound(record, AvidConfig())


_LOOKS = {"image": _look_at_image, "video": _look_at_video, "audio": _look_at_sound}


def _look_at_streams(record: dict[str, Any] | None, facts: Facts) -> None:
    if record is not None:
        with ExitStack() as opened:
            file = opened_file(record, opened)
            if isinstance(file, bytes):
                facts.content = xxhash.xxh3_64_intdigest(file)
            elif isinstance(file, str):
                with open(file, "rb") as content:
                    made: Any = hashlib.file_digest(content, xxhash.xxh3_64)
                    facts.content = made.intdigest()
        with ExitStack() as opened:
            _streams(opened_file(record, opened), opened, facts)


def _streams(file: Any, opened: ExitStack, facts: Facts) -> None:
    """Properties of a container's video and sound; errors of broken files are reported by the reader."""
    av = import_av()
    try:
        container = opened.enter_context(av.open(io.BytesIO(file) if isinstance(file, bytes) else file))
    except (av.error.FFmpegError, ValueError, UnicodeError):
        return
    if container.duration:
        facts.seconds = container.duration / 1e6
    for picture in container.streams.video[:1]:
        facts.side = min(picture.codec_context.width, picture.codec_context.height)
        facts.kinds["frames per second"] = f"{float(picture.average_rate or 0):.4g}"
    sounds = container.streams.audio[:1]
    facts.kinds["sound"] = f"{sounds[0].codec_context.sample_rate:,} Hz" if sounds else "none"
