# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Video files with sound -> AVID's inputs."""

from pathlib import Path

import numpy as np
from transformers import BatchFeature, ProcessorMixin

from .configuration_ssl import short_side
from .feature_extraction_avid import AvidFeatureExtractor
from .media_avid import even_draws, read_clips
from .video_processing_avid import AvidVideoProcessor


class AvidProcessor(ProcessorMixin):
    """Reads clips with PyAV and prepares their frames and sound."""

    def __init__(self, feature_extractor, video_processor):
        super().__init__(feature_extractor, video_processor)

    def __call__(self, videos, num_clips: int = 1, audio=None, return_tensors: str | None = None) -> BatchFeature:
        """One file or a list of files -> `pixel_values_videos` (B, T, C, H, W) and `input_values` (B, frames, bands).

        Args:
            videos: path or content (bytes) of each file.
            num_clips: evenly spaced clips per file; row i * num_clips + j is clip j of file i.
            audio: separate sound files, if the videos have none.

        Raises:
            MediaError: a file cannot be read, or has no sound.
            ImportError: PyAV is not installed.
        """
        videos = [videos] if isinstance(videos, str | bytes | Path) else list(videos)
        sounds = [audio] * len(videos) if audio is None or isinstance(audio, str | bytes | Path) else audio
        hearing, seeing = self.feature_extractor, self.video_processor
        clips = [
            clip
            for video, sound in zip(videos, sounds, strict=True)
            for clip in read_clips(
                video,
                even_draws(num_clips),
                num_frames=seeing.num_frames,
                frame_rate=seeing.fps,
                sampling_rate=hearing.sampling_rate,
                audio_seconds=hearing.audio_seconds,
                audio=sound,
            )
        ]
        # Videos may differ in size, so process them one by one.
        seen = [seeing(f, input_data_format="channels_last")["pixel_values_videos"][0] for f, _ in clips]
        heard = hearing([waveform for _, waveform in clips])["input_values"]
        data = {"pixel_values_videos": np.stack([np.asarray(frames) for frames in seen]), "input_values": heard}
        return BatchFeature(data, tensor_type=return_tensors)


def avid_processor(config) -> AvidProcessor:
    """Processor for an `AvidConfig`; its `save_pretrained` writes all files that a repo needs."""
    mean, std = (v if isinstance(v, float | int) else list(v) for v in (config.audio_mean, config.audio_std))
    hearing = AvidFeatureExtractor(
        feature_size=config.num_bands,
        sampling_rate=config.sampling_rate,
        audio_seconds=config.audio_seconds,
        n_fft=config.n_fft,
        hop_length=config.hop_length,
        spectrogram=config.spectrogram,
        mean=mean,
        std=std,
    )
    seeing = AvidVideoProcessor(
        size={"shortest_edge": short_side(config.image_size, config.crop_pct)},
        crop_size={"height": config.image_size, "width": config.image_size},
        image_mean=list(config.image_mean),
        image_std=list(config.image_std),
        resample=3 if config.interpolation == "bicubic" else 2,
        num_frames=config.num_frames,
        fps=config.frame_rate,
    )
    return AvidProcessor(hearing, seeing)


AvidProcessor.register_for_auto_class()
