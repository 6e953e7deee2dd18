# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Configuration of AVID and AVID + CMA (https://huggingface.co/papers/2004.12943): towers, objective and inputs."""

from typing import Any

from huggingface_hub.dataclasses import strict

from .configuration_ssl import TINY, WIDEST, ImageInputConfig, check_arguments, check_choices, check_ranges


VIDEO_NETWORKS = ("r2plus1d_10", "r2plus1d_18", "r2plus1d_34")
AUDIO_NETWORKS = ("conv2d_10",)


@strict
class AvidConfig(ImageInputConfig):
    """Defaults: the published Kinetics configuration of Cross-AVID.

    Args:
        video_backbone (`str`, *optional*, defaults to `"r2plus1d_18"`): the published network of depth 10, 18 or 34,
            or any timm model, which sees single frames.
        audio_backbone (`str`, *optional*, defaults to `"conv2d_10"`): the published network, or any timm model, which
            sees the spectrogram as an image of one channel.
        video_backbone_args, audio_backbone_args (`dict`, *optional*): passed to `timm.create_model`.
        frame_pooling (`str`, *optional*, defaults to `"mean"`): of a timm model's features over the frames, or
            `"max"`.
        time_segments (`int`, *optional*, defaults to 1): parts of a clip that are pooled apart in both towers, whose
            features then stand one after another, so that an embedding knows what came when. The published networks
            pool a whole clip, which tells what is there, not when.
        projector_dims (`tuple`, *optional*, defaults to `(512, 512, 128)`): widths of each head's layers.
        head_batch_norm (`bool`, *optional*, defaults to `False`): BatchNorm in the heads' hidden layers. The published
            heads have none; on corpora of a few thousand clips they then stay collapsed.
        num_instances (`int`, *optional*, defaults to 0): clips of the training set, of which the memories have a row
            each.
        temperature (`float`, *optional*, defaults to 0.07): of the scores.
        num_negatives (`int`, *optional*, defaults to 1024): drawn for every anchor.
        memory_momentum (`float`, *optional*, defaults to 0.5): share of its old value in an updated row.
        memory_dtype (`str`, *optional*, defaults to `"float32"`): or `"bfloat16"`, for half the memory.
        cross_coeff, within_coeff (`float`, *optional*, defaults to 1 and 0): weights of instance discrimination
            against the other modality's memory and against the own; Cross-AVID, Self-AVID (0, 1), Joint-AVID (1, 1).
        cma (`bool`, *optional*, defaults to `False`): Cross-Modal Agreement, which starts from an AVID run.
        cross_positive_coeff, within_positive_coeff (`float`, *optional*, defaults to 0 and 1): weights of CMA's
            positive sets, scored against the other modality's memory and against the own.
        num_positives (`int`, *optional*, defaults to 32): instances in a positive set.
        num_negatives_within (`int`, *optional*, defaults to 64): the first of the negatives, for
            `within_positive_coeff`.
        agreement (`str`, *optional*, defaults to `"consensus"`): similarity by which positives are found: the smaller
            of both modalities' ones, the larger (`"union"`), or only one (`"video"`, `"audio"`).
        positives_every_epochs (`int`, *optional*, defaults to 50): when the positive sets are found anew.
        partition (`str`, *optional*, defaults to `"shared"`): one constant Z for all scores, as published, or
            `"per_term"`: one each for cross-modal, video-video and audio-audio scores, whose sizes differ by orders.
        exclude_anchor (`bool`, *optional*, defaults to `False`): never draw an instance as its own negative, which the
            published CMA may.
        image_size, num_channels, image_mean, image_std, crop_pct, interpolation: of the frames, as for images.
        num_frames (`int`, *optional*, defaults to 8), frame_rate (`float`, *optional*, defaults to 16): of a clip.
        sampling_rate (`int`, *optional*, defaults to 24000), audio_seconds (`float`, *optional*, defaults to 2): of
            the sound.
        n_fft (`int`, *optional*, defaults to 1024), hop_length (`int`, *optional*, defaults to 240): samples of a
            window and between two.
        num_bands (`int`, *optional*, defaults to 257): bands of the spectrogram; linear ones average neighboring
            bins.
        spectrogram (`str`, *optional*, defaults to `"linear"`): or `"mel"`.
        audio_mean, audio_std (`float` or `list`, *optional*): normalization of the spectrogram in dB, one number or
            one for each band; the average over the published 257.
    """

    model_type = "avid"
    modality = "clips"
    backbone_prefix = "video_"

    video_backbone: str = "r2plus1d_18"
    audio_backbone: str = "conv2d_10"
    video_backbone_args: dict[str, Any] | None = None
    audio_backbone_args: dict[str, Any] | None = None
    frame_pooling: str = "mean"
    time_segments: int = 1
    projector_dims: list[int] | tuple[int, ...] = (512, 512, 128)
    head_batch_norm: bool = False
    num_instances: int = 0
    temperature: float | int = 0.07
    num_negatives: int = 1024
    memory_momentum: float | int = 0.5
    memory_dtype: str = "float32"
    cross_coeff: float | int = 1.0
    within_coeff: float | int = 0.0
    cma: bool = False
    cross_positive_coeff: float | int = 0.0
    within_positive_coeff: float | int = 1.0
    num_positives: int = 32
    num_negatives_within: int = 64
    agreement: str = "consensus"
    positives_every_epochs: float | int = 50
    partition: str = "shared"
    exclude_anchor: bool = False
    interpolation: str = "bilinear"
    num_frames: int = 8
    frame_rate: float | int = 16
    sampling_rate: int = 24000
    audio_seconds: float | int = 2
    n_fft: int = 1024
    hop_length: int = 240
    num_bands: int = 257
    spectrogram: str = "linear"
    audio_mean: float | int | list[float | int] | tuple[float | int, ...] = -28.5
    audio_std: float | int | list[float | int] | tuple[float | int, ...] = 19.7

    def check_views(self, num_global: int, num_local: int, batch_size: int) -> None:
        """A clip has one view, whatever the method; the data see to that."""

    @property
    def backbones(self) -> list[str]:
        """Names of both towers' networks."""
        return [self.video_backbone, self.audio_backbone]

    @property
    def timm_backbones(self) -> list[str]:
        """Towers that are not the published networks."""
        return [b for b in self.backbones if b not in VIDEO_NETWORKS + AUDIO_NETWORKS]

    @property
    def video_seconds(self) -> float:
        """Length of the frames' window."""
        return self.num_frames / self.frame_rate

    @property
    def num_audio_frames(self) -> int:
        """Rows of the spectrogram."""
        return int(self.audio_seconds * self.sampling_rate) // self.hop_length

    def validate_choices(self):
        ours = ", ".join(VIDEO_NETWORKS + AUDIO_NETWORKS)
        for backbone in self.timm_backbones:
            if backbone.startswith(("r2plus1d", "conv2d")):
                raise ValueError(f"There is no network {backbone!r}; choose one of timm, or {ours}.")
        choices: dict[str, tuple[str, ...]] = {
            "frame_pooling": ("mean", "max"),
            "memory_dtype": ("float32", "bfloat16"),
            "agreement": ("consensus", "union", "video", "audio"),
            "partition": ("shared", "per_term"),
            "spectrogram": ("linear", "mel"),
        }
        check_choices(self, choices)

    def validate_inputs(self):
        check_ranges(
            self,
            {
                "audio_mean": (-1e6, 1e6),
                "audio_std": (TINY, 1e6),
                "num_frames": (1, 10_000),
                "frame_rate": (0.001, 1e6),
                "sampling_rate": (1, 1e7),
                "audio_seconds": (0.001, 3600),
                "n_fft": (2, 1_048_576),
                "hop_length": (1, 1_048_576),
                "num_bands": (2, 1_048_576),
            },
        )
        check_arguments(self.video_backbone_args, "video_backbone_args")
        check_arguments(self.audio_backbone_args, "audio_backbone_args")
        for field in ("audio_mean", "audio_std"):
            values = getattr(self, field)
            if not isinstance(values, float | int) and len(values) != self.num_bands:
                raise ValueError(f"{field} must be one number, or num_bands={self.num_bands} of them.")
        steps = self.num_frames // 8 if self.video_backbone in VIDEO_NETWORKS else self.num_frames
        if not 1 <= self.time_segments <= max(steps, 1):
            raise ValueError(
                f"time_segments={self.time_segments} must be at least 1 and at most {max(steps, 1)}, to which "
                f"{self.video_backbone} reduces {self.num_frames} frames."
            )
        if self.spectrogram == "linear" and (self.n_fft // 2) % (self.num_bands - 1):
            raise ValueError(
                f"num_bands={self.num_bands} does not fit n_fft={self.n_fft}: linear bands are one for bin 0 and a "
                f"divisor of {self.n_fft // 2} for the others."
            )

    def validate_objective(self):
        coefficients = ["cross_coeff", "within_coeff"]
        coefficients += ["cross_positive_coeff", "within_positive_coeff"] if self.cma else []
        check_ranges(
            self,
            {
                **dict.fromkeys(coefficients, (0, 1e6)),
                **dict.fromkeys(("num_negatives", "num_positives", "num_negatives_within"), (1, 1e7)),
                "projector_dims": (1, WIDEST),
                "num_instances": (0, 1e10),
                "temperature": (TINY, 1e6),
                "memory_momentum": (0, 1 - TINY),
                "positives_every_epochs": (TINY, 1e12),
            },
        )
        if not any(getattr(self, field) for field in coefficients) or not self.projector_dims:
            raise ValueError("The coefficients must not be all 0, and projector_dims not empty.")
