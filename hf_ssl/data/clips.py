# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Clips of videos with sound, in two stages like images: the worker cuts, crops and flips; the device computes colors
and spectrogram. All frames of a clip share the same crop, flip and colors.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import fsspec
import numpy as np
import torch
from PIL import Image

from ..models.configuration_avid import AvidConfig
from ..models.feature_extraction_avid import log_spectrogram
from ..models.media_avid import MediaError, even_draws, read_clips, read_sounds
from ..recipe import ClipsConfig, DataConfig, Recipe, RecipeError
from .media import require_reader
from .modality import Modality
from .photometric import NEUTRAL, Photometric, reference_photometric
from .sources import Source, available_splits, check_source
from .views import DRAWS, View, crop_frames, eval_image, sample_view


@dataclass(frozen=True)
class ClipViews:
    """Stage 1: an encoded video -> uint8 frames, random parameters for stage 2, and sound.

    Args:
        reference: do the colors here, frame by frame, in the published arithmetic.

    Raises:
        RecipeError: PyAV is not installed, or the model does not take RGB.
    """

    name: ClassVar[str] = "clips"
    numbered: ClassVar[bool] = True
    view: View
    config: AvidConfig
    clips: ClipsConfig
    reference: bool = False

    def __post_init__(self):
        require_av()
        if self.config.num_channels != 3:
            raise RecipeError(f"model.num_channels={self.config.num_channels} is not supported for videos; set 3.")

    def make(self, record: dict[str, Any] | None, key: tuple[int, ...], source: Any):
        """Frames uint8 (T, S, S, 3), a row of `PARAMS`, and the waveform float32 (samples,); `key` is the seed.

        Raises:
            MediaError: the file cannot be read.
        """
        uniform = np.random.default_rng(key).random(DRAWS + 3).tolist()  # view draws as for images, then the clip's
        *draw, volume = uniform[DRAWS:]
        frames, sound = read_clip(record, [tuple(draw)], self.config, self.clips.offset, source.max_megapixels)[0]
        drawn = sample_view(self.view, frames.shape[2], frames.shape[1], uniform)
        pixels, params = crop_frames(frames, self.view, drawn), drawn.params
        if self.reference:
            images = [reference_photometric(Image.fromarray(frame), params) for frame in pixels]
            pixels, params = np.stack([np.asarray(image) for image in images]), NEUTRAL
        sound *= np.float32(1 + self.clips.volume * (2 * volume - 1))
        return pixels, params, sound

    def blank(self):
        c = self.config
        frames = np.zeros((c.num_frames, self.view.size, self.view.size, 3), np.uint8)
        return frames, NEUTRAL, np.zeros(int(c.audio_seconds * c.sampling_rate), np.float32)

    def stack(self, made: Sequence[Any]) -> dict[str, np.ndarray]:
        names = ("frames", "params", "waveforms")
        return {name: np.stack(part) for name, part in zip(names, zip(*made, strict=True), strict=True)}


class ClipTransform:
    """Stage 2: the loader's batches -> model inputs, with the sizes of an `AvidConfig`."""

    def __init__(self, config: AvidConfig, arithmetic: Literal["auto", "torch"] = "auto"):
        self.photometric = Photometric(config.image_mean, config.image_std, arithmetic)
        self.mean, self.std = torch.tensor(config.audio_mean), torch.tensor(config.audio_std)
        self.sizes = {key: getattr(config, key) for key in ("sampling_rate", "n_fft", "hop_length", "num_bands")}
        self.sizes |= {"num_frames": config.num_audio_frames, "spectrogram": config.spectrogram}

    def __call__(self, batch: dict[str, Any], device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
        """`pixel_values_videos` (B, T, C, H, W), `input_values` (B, frames, bands), and `indices` (B,): the dataset
        row of each clip.
        """
        inputs = self.normalize(batch["frames"], batch["waveforms"], device, batch["params"])
        return {**inputs, "indices": batch["index"].to(device, non_blocking=True)}

    def normalize(
        self, frames: torch.Tensor | None, waveforms: torch.Tensor, device="cpu", params: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """The same without `indices`: `frames` uint8 (B, T, S, S, C), `waveforms` (B, samples), `params` (B, P).

        Without `params`, colors are not augmented.
        """
        self.mean, self.std = self.mean.to(device, non_blocking=True), self.std.to(device, non_blocking=True)
        sound = waveforms.to(device, non_blocking=True)
        inputs = {"input_values": log_spectrogram(sound, mean=self.mean, std=self.std, **self.sizes)}
        if frames is not None:
            params = torch.from_numpy(NEUTRAL).expand(len(frames), -1) if params is None else params
            rows = params.repeat_interleave(frames.shape[1], 0)
            made = self.photometric(frames.flatten(0, 1), rows, device)  # (B*T, C, S, S)
            inputs["pixel_values_videos"] = made.unflatten(0, frames.shape[:2])
        return inputs


class ClipInference:
    """Inference preprocessing: `num_clips` evenly spaced clips of each video with sound, or of sound alone."""

    def __init__(self, config: AvidConfig, num_clips: int = 1):
        self.config, self.num_clips = config, num_clips
        self.normalize = ClipTransform(config).normalize

    def read(self, source: Source, index: int) -> tuple[np.ndarray, ...]:
        """Frames uint8 (clips, T, S, S, C), if the source has videos, and sound (clips, samples)."""
        record = source.record(index)
        if "video" in source.columns:
            return eval_clip(record, self.config, self.num_clips)
        return (eval_sound(record, self.config, self.num_clips),)

    def blank(self, source: Source) -> tuple[torch.Tensor, ...]:
        c = self.config
        black = torch.zeros(1, c.num_frames, c.image_size, c.image_size, c.num_channels, dtype=torch.uint8)
        silence = torch.zeros(1, int(c.audio_seconds * c.sampling_rate))
        return (black, silence) if "video" in source.columns else (silence,)

    def inputs(self, *clips: torch.Tensor, device: torch.device) -> dict[str, torch.Tensor]:
        return self.normalize(clips[0] if len(clips) == 2 else None, clips[-1], device)


class Clips(Modality):
    name, medium = "clips", "video"
    needs_labels, numbered = False, True
    towers = ("video", "audio")

    def check_views(self, views: list[View]) -> None:
        if len(views) != 1 or views[0].local:
            raise RecipeError("A clip has a single view; set views.second.count=0 and views.local.count=0.")

    def stage1(self, views: list[View], config: AvidConfig, recipe: Recipe) -> ClipViews:
        return ClipViews(views[0], config, recipe.clips, recipe.views.photometric == "reference")

    def stage2(self, config: AvidConfig, recipe: Recipe) -> ClipTransform:
        return ClipTransform(config, recipe.views.arithmetic)

    def inference(self, config: AvidConfig, num_clips: int = 1) -> ClipInference:
        require_av()
        return ClipInference(config, num_clips)

    def input_shapes(self, views: list[View], batch: int, config) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        frames = (batch, config.num_frames, config.num_channels, config.image_size, config.image_size)
        return {
            "pixel_values_videos": (frames, torch.float32),
            "input_values": ((batch, config.num_audio_frames, config.num_bands), torch.float32),
            "indices": ((batch,), torch.int64),
        }

    def medium_of(self, data: DataConfig) -> str:
        """The medium of a source: "video", or "audio" if there are only sounds."""
        faults = []
        for medium in ("video", "audio"):
            try:
                check_source(data, next(iter(available_splits(data, medium))), medium)
                return medium
            except RecipeError as error:
                faults.append(error)
        raise faults[0]


MODALITY = Clips()


def require_av() -> None:
    """Raise RecipeError if PyAV is not installed."""
    require_reader("video")


def eval_clip(
    record: dict[str, Any] | None, config: AvidConfig, num_clips: int = 1, max_megapixels: float = 50.0
) -> tuple[np.ndarray, np.ndarray]:
    """Evenly spaced clips of a video: center-cropped frames uint8 (n, T, S, S, C), and sound (n, samples).

    Raises:
        MediaError: the file cannot be read.
    """
    size = (config.image_size, config.crop_pct, config.interpolation, config.num_channels)
    frames, sound = zip(*read_clip(record, even_draws(num_clips), config, 0.0, max_megapixels), strict=True)
    return np.stack([[eval_image(Image.fromarray(f), *size) for f in clip] for clip in frames]), np.stack(sound)


def eval_sound(record: dict[str, Any] | None, config: AvidConfig, num_clips: int = 1) -> np.ndarray:
    """Evenly spaced windows of a sound without video: (n, samples).

    Raises:
        MediaError: the file cannot be read.
    """
    if record is None:
        raise MediaError("the row has no sound")
    with ExitStack() as opened:
        file = opened_file(record, opened)
        return np.stack(
            read_sounds(file, num_clips, sampling_rate=config.sampling_rate, audio_seconds=config.audio_seconds)
        )


def read_clip(record, draws, config: AvidConfig, offset: float, max_megapixels: float) -> list:
    """A list of (frames (T, H, W, 3), sound (samples,)), one for each clip chosen by `draws`.

    Raises:
        MediaError: the file cannot be read.
    """
    if record is None or record.get("audio", record) is None:
        raise MediaError(f"the row has no {'sound' if record else 'video'}")
    how = {key: getattr(config, key) for key in ("num_frames", "frame_rate", "sampling_rate", "audio_seconds")}
    with ExitStack() as opened:
        file, audio = opened_file(record, opened), opened_file(record["audio"], opened) if "audio" in record else None
        return read_clips(file, draws, **how, offset=offset, audio=audio, max_megapixels=max_megapixels)


def opened_file(record: dict[str, Any], opened: ExitStack):
    """Content or path of a file, or an open file if it is remote or in an archive."""
    if record["bytes"] is not None or "://" not in record["path"]:
        return record["path"] if record["bytes"] is None else record["bytes"]
    return opened.enter_context(fsspec.open(record["path"], "rb"))
