# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Configuration of AVID and AVID + CMA (https://huggingface.co/papers/2004.12943): towers, objective and inputs."""

from typing import Any

from huggingface_hub.dataclasses import strict

from .configuration_ssl import TINY, WIDEST, ImageInputConfig, check_arguments, check_choices, check_ranges


VIDEO_NETWORKS = ("r2plus1d_10", "r2plus1d_18", "r2plus1d_34")
AUDIO_NETWORKS = ("conv2d_10",)


@strict
class AvidConfig(ImageInputConfig):
    """The defaults are the published Kinetics configuration of Cross-AVID.

    Args:
        video_backbone (`str`, *optional*, defaults to `"r2plus1d_18"`): the published network with depth 10, 18 or 34,
            or any timm model, applied to single frames.
        audio_backbone (`str`, *optional*, defaults to `"conv2d_10"`): the published network, or any timm model,
            applied to the spectrogram as a one-channel image.
        video_backbone_args, audio_backbone_args (`dict`, *optional*): passed to `timm.create_model`.
        frame_pooling (`str`, *optional*, defaults to `"mean"`): pooling of a timm model's features over frames,
            `"mean"` or `"max"`.
        time_segments (`int`, *optional*, defaults to 1): split a clip into this many parts in both towers, pool each
            and concatenate them, so that embeddings keep the order of events. The published networks pool the whole
            clip and lose it.
        projector_dims (`tuple`, *optional*, defaults to `(512, 512, 128)`): widths of each projector's layers.
        head_batch_norm (`bool`, *optional*, defaults to `False`): BatchNorm in the projectors' hidden layers. The
            published ones have none, and then stay collapsed on datasets of a few thousand clips.
        num_instances (`int`, *optional*, defaults to 0): number of training clips; the memories have one row for each.
        temperature (`float`, *optional*, defaults to 0.07): temperature of the scores.
        num_negatives (`int`, *optional*, defaults to 1024): negatives drawn per anchor.
        memory_momentum (`float`, *optional*, defaults to 0.5): weight of a row's old value in its update.
        memory_dtype (`str`, *optional*, defaults to `"float32"`): `"bfloat16"` halves the size of the memories.
        cross_coeff, within_coeff (`float`, *optional*, defaults to 1 and 0): weights of instance discrimination
            against the other modality's memory and the anchor's own. Cross-AVID is (1, 0), Self-AVID (0, 1),
            Joint-AVID (1, 1).
        cma (`bool`, *optional*, defaults to `False`): Cross-Modal Agreement, which starts from an AVID run.
        cross_positive_coeff, within_positive_coeff (`float`, *optional*, defaults to 0 and 1): weights of CMA's
            positive sets, scored against the other modality's memory and the anchor's own.
        num_positives (`int`, *optional*, defaults to 32): size of a positive set.
        num_negatives_within (`int`, *optional*, defaults to 64): `within_positive_coeff` uses only this many of the
            negatives.
        agreement (`str`, *optional*, defaults to `"consensus"`): similarity that selects positives: the smaller of the
            two modalities' similarities, the larger (`"union"`), or one of them (`"video"`, `"audio"`).
        positives_every_epochs (`int`, *optional*, defaults to 50): interval between updates of the positive sets.
        partition (`str`, *optional*, defaults to `"shared"`): one constant Z for all scores, as published, or
            `"per_term"`: one each for cross-modal, video-video and audio-audio scores, whose scales differ by orders
            of magnitude.
        exclude_anchor (`bool`, *optional*, defaults to `False`): never draw an instance as its own negative; the
            published CMA may do so.
        image_size, num_channels, image_mean, image_std, crop_pct, interpolation: see `ImageInputConfig`.
        num_frames (`int`, *optional*, defaults to 8): frames per clip.
        frame_rate (`float`, *optional*, defaults to 16): frames per second of a clip.
        sampling_rate (`int`, *optional*, defaults to 24000): sampling rate of the audio in Hz.
        audio_seconds (`float`, *optional*, defaults to 2): length of the audio in seconds.
        n_fft (`int`, *optional*, defaults to 1024): window length of the spectrogram in samples.
        hop_length (`int`, *optional*, defaults to 240): hop of the spectrogram in samples.
        num_bands (`int`, *optional*, defaults to 257): spectrogram bands; linear ones average neighboring bins.
        spectrogram (`str`, *optional*, defaults to `"linear"`): `"linear"` or `"mel"`.
        audio_mean, audio_std (`float` or `list`, *optional*): normalization of the spectrogram in dB, one number or
            one per band; the defaults average the published 257.
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
        """Accept anything: a clip has one view."""

    @property
    def backbones(self) -> list[str]:
        """Names of the two towers' networks."""
        return [self.video_backbone, self.audio_backbone]

    @property
    def timm_backbones(self) -> list[str]:
        """Backbones of towers that use a timm model."""
        return [b for b in self.backbones if b not in VIDEO_NETWORKS + AUDIO_NETWORKS]

    @property
    def video_seconds(self) -> float:
        """Duration of the frames in seconds."""
        return self.num_frames / self.frame_rate

    @property
    def num_audio_frames(self) -> int:
        """Number of spectrogram frames."""
        return int(self.audio_seconds * self.sampling_rate) // self.hop_length

    def validate_choices(self):
        ours = ", ".join(VIDEO_NETWORKS + AUDIO_NETWORKS)
        for backbone in self.timm_backbones:
            if backbone.startswith(("r2plus1d", "conv2d")):
                raise ValueError(f"Unknown network {backbone!r}; choose one of timm, or {ours}.")
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
                raise ValueError(f"{field} must be one number, or a list of num_bands={self.num_bands}.")
        steps = self.num_frames // 8 if self.video_backbone in VIDEO_NETWORKS else self.num_frames
        if not 1 <= self.time_segments <= max(steps, 1):
            raise ValueError(
                f"time_segments={self.time_segments} must be at least 1 and at most {max(steps, 1)}, to which "
                f"{self.video_backbone} reduces {self.num_frames} frames."
            )
        if self.spectrogram == "linear" and (self.n_fft // 2) % (self.num_bands - 1):
            raise ValueError(
                f"num_bands={self.num_bands} does not fit n_fft={self.n_fft}: linear bands need one for bin 0 plus a "
                f"divisor of {self.n_fft // 2}."
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
            raise ValueError("At least one coefficient must not be 0, and projector_dims must not be empty.")
