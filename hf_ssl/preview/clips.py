# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Draw clips for a preview."""

from pathlib import Path

import torch

from ..data.clips import ClipTransform, ClipViews
from ..data.photometric import Photometric
from ..data.sources import Source
from ..data.views import View
from .pictures import COLORS, INK, Picture, picture_of


def title(views: list[View]) -> str:
    """Title of the preview."""
    return "a clip's frames and sound"


def row(source: Source, index: int, stage1: ClipViews, key: tuple[int, ...]) -> list[Picture]:
    """The frames of a clip as the network sees them, and its spectrogram."""
    made = stage1.make(source.record(index), key, source)
    batch = {name: torch.from_numpy(array.copy()) for name, array in stage1.stack([made]).items()}
    config = stage1.config
    photometric = Photometric([0.0] * config.num_channels, [1.0] * config.num_channels)
    rows = batch["params"].expand(config.num_frames, -1)
    frames = photometric(batch["frames"][0], rows)
    sound = ClipTransform(config).normalize(None, batch["waveforms"])["input_values"][0]
    name = Path(source.name(index)).name
    seconds = [f"{i / config.frame_rate:.2f} s" for i in range(config.num_frames)]
    cells = [
        (picture_of(f), at, [name] if i == 0 else [], INK)
        for i, (f, at) in enumerate(zip(frames, seconds, strict=True))
    ]
    said = [f"{config.audio_seconds:g} s, {config.num_bands} {config.spectrogram} bands"]
    said.append(f"mean {sound.mean():.2f}, std {sound.std():.2f} (audio_mean, audio_std)")
    low_to_high = ((sound.T.flip(0) - sound.min()) / (sound.max() - sound.min()).clamp(min=1e-6))[None]
    return [*cells, (picture_of(low_to_high), "sound", said, COLORS[1])]
