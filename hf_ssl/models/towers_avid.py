# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""The two towers of AVID: the published networks, or any timm model on frames and spectrograms.

This file ships inside model repositories, so it imports from its siblings only.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers.utils import ModelOutput

from .configuration_avid import AUDIO_NETWORKS, VIDEO_NETWORKS, AvidConfig
from .configuration_ssl import SSLConfig
from .modeling_ssl import SSLModel


_DEPTHS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}  # blocks in each stage

Encoded = tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...] | None]  # last map, pooled, maps of all stages


@dataclass
class AvidOutput(ModelOutput):
    """Output of both towers, or of the one whose input was given.

    Args:
        video_embeds, audio_embeds (`torch.FloatTensor` of shape `(B, D)`): unit vectors, comparable across modalities.
        video_pooler_output, audio_pooler_output (`torch.FloatTensor` of shape `(B, F)`): features for other tasks.
        video_last_hidden_state (`torch.FloatTensor` of shape `(B, F, t, h, w)`): last map of the video tower.
        audio_last_hidden_state (`torch.FloatTensor` of shape `(B, F, h, w)`): last map of the audio tower.
        video_hidden_states, audio_hidden_states (`tuple`, *optional*): maps of all stages.
    """

    video_embeds: torch.FloatTensor | None = None
    audio_embeds: torch.FloatTensor | None = None
    video_pooler_output: torch.FloatTensor | None = None
    audio_pooler_output: torch.FloatTensor | None = None
    video_last_hidden_state: torch.FloatTensor | None = None
    audio_last_hidden_state: torch.FloatTensor | None = None
    video_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    audio_hidden_states: tuple[torch.FloatTensor, ...] | None = None


class R2Plus1DBlock(nn.Module):
    """Two factorized convolutions with a shortcut without BatchNorm; the last norm comes after the addition."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        space, time = (
            {"kernel_size": (1, 3, 3), "padding": (0, 1, 1)},
            {"kernel_size": (3, 1, 1), "padding": (1, 0, 0)},
        )
        self.spatial1 = nn.Conv3d(in_channels, channels, stride=(1, stride, stride), bias=False, **space)
        self.spatial_norm1 = nn.BatchNorm3d(channels)
        self.temporal1 = nn.Conv3d(channels, channels, stride=(stride, 1, 1), bias=False, **time)
        self.temporal_norm1 = nn.BatchNorm3d(channels)
        self.spatial2 = nn.Conv3d(channels, channels, bias=False, **space)
        self.spatial_norm2 = nn.BatchNorm3d(channels)
        self.temporal2 = nn.Conv3d(channels, channels, bias=False, **time)
        self.norm = nn.BatchNorm3d(channels)
        self.shortcut = nn.Identity()
        if stride > 1 or in_channels != channels:
            self.shortcut = nn.Conv3d(in_channels, channels, 1, stride=stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.spatial_norm1(self.spatial1(x)).relu_()
        y = self.temporal_norm1(self.temporal1(y)).relu_()
        y = self.spatial_norm2(self.spatial2(y)).relu_()
        return self.norm(self.temporal2(y) + self.shortcut(x)).relu_()


class R2Plus1D(nn.Module):
    """The published video network (not torchvision's), depth 10, 18 or 34: (B, C, T, H, W) -> one map per stage."""

    num_features = 512

    def __init__(self, depth: int, in_channels: int = 3):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv3d(in_channels, 64, (3, 7, 7), stride=(1, 2, 2), padding=(1, 3, 3), bias=False),
            nn.BatchNorm3d(64),
            nn.ReLU(inplace=True),
            nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
        )
        self.stages = nn.ModuleList()
        width = 64
        for i, blocks in enumerate(_DEPTHS[depth]):
            channels = 64 * 2**i
            first = R2Plus1DBlock(width, channels, 1 if i == 0 else 2)
            self.stages.append(
                nn.Sequential(first, *(R2Plus1DBlock(channels, channels, 1) for _ in range(blocks - 1)))
            )
            width = channels

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return _through(self.stages, self.stem(x))


class PlainConvBlock(nn.Sequential):
    """Two 3x3 convolutions with BatchNorm and ReLU, without a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        layers: list[nn.Module] = []
        for width, step in ((in_channels, stride), (channels, 1)):
            layers += [nn.Conv2d(width, channels, 3, stride=step, padding=1, bias=False), nn.BatchNorm2d(channels)]
            layers.append(nn.ReLU(inplace=True))
        super().__init__(*layers)


class Conv2D(nn.Module):
    """The published audio network with ten layers: (B, 1, frames, bands) -> one map per stage."""

    num_features = 512

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)
        )
        widths, strides = (64, 64, 128, 256, 512), (2, 2, 2, 1)
        self.stages = nn.ModuleList(PlainConvBlock(widths[i], widths[i + 1], strides[i]) for i in range(4))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return _through(self.stages, self.stem(x))


def _through(stages: nn.ModuleList, x: torch.Tensor) -> list[torch.Tensor]:
    maps = []
    for stage in stages:
        x = stage(x)
        maps.append(x)
    return maps


def over_time(x: torch.Tensor, segments: int, pooling: str) -> torch.Tensor:
    """Pool each time segment by mean or max and concatenate: (B, D, T) -> (B, segments * D)."""
    pool = F.adaptive_max_pool1d if pooling == "max" else F.adaptive_avg_pool1d
    return pool(x, segments).transpose(1, 2).flatten(1)


def timm_config(backbone: str, arguments: dict | None, channels: int) -> SSLConfig:
    """Configuration of a timm tower; `SSLModel` builds, initializes and checkpoints it."""
    neutral = {"image_mean": (0.5,) * channels, "image_std": (0.5,) * channels}
    return SSLConfig(backbone=backbone, backbone_args=arguments, num_channels=channels, **neutral)


class VideoTower(nn.Module):
    """Frames (B, T, C, H, W) -> last map (B, D, t, h, w), pooled (B, D), and optionally all stage maps."""

    def __init__(self, config: AvidConfig):
        super().__init__()
        self.published, self.frame_pooling = config.video_backbone in VIDEO_NETWORKS, config.frame_pooling
        self.segments = config.time_segments
        if self.published:
            depth = int(config.video_backbone.split("_")[1])
            self.backbone: nn.Module = R2Plus1D(depth, config.num_channels)
        else:
            timm_model = timm_config(config.video_backbone, config.video_backbone_args, config.num_channels)
            self.backbone = SSLModel(timm_model)

    @property
    def num_features(self) -> int:
        return self.backbone.num_features * self.segments

    def forward(self, pixel_values_videos: torch.Tensor, output_hidden_states: bool = False) -> Encoded:
        if self.published:
            maps = self.backbone(pixel_values_videos.transpose(1, 2))
            pooled = over_time(maps[-1].amax((3, 4)), self.segments, "max")
            return maps[-1], pooled, tuple(maps) if output_hidden_states else None
        time = pixel_values_videos.shape[1]
        output = self.backbone(pixel_values_videos.flatten(0, 1), output_hidden_states=output_hidden_states)

        def of_clips(x: torch.Tensor) -> torch.Tensor:  # (B*T, D, ...) -> (B, D, T, ...)
            return x.unflatten(0, (-1, time)).transpose(1, 2)

        pooled = over_time(of_clips(output.pooler_output), self.segments, self.frame_pooling)
        hidden = output.hidden_states
        return of_clips(output.last_hidden_state), pooled, None if hidden is None else tuple(map(of_clips, hidden))


class AudioTower(nn.Module):
    """Spectrograms (B, frames, bands) -> last map (B, D, h, w), pooled (B, D), and optionally all stage maps."""

    def __init__(self, config: AvidConfig):
        super().__init__()
        self.published, self.segments = config.audio_backbone in AUDIO_NETWORKS, config.time_segments
        if self.published:
            self.backbone: nn.Module = Conv2D()
        else:
            self.backbone = SSLModel(timm_config(config.audio_backbone, config.audio_backbone_args, 1))

    @property
    def num_features(self) -> int:
        return self.backbone.num_features * self.segments

    def forward(self, input_values: torch.Tensor, output_hidden_states: bool = False) -> Encoded:
        if self.published:
            maps = self.backbone(input_values.unsqueeze(1))
            pooled = over_time(maps[-1].amax(3), self.segments, "max")
            return maps[-1], pooled, tuple(maps) if output_hidden_states else None
        output = self.backbone(input_values.unsqueeze(1), output_hidden_states=output_hidden_states)
        last, pooled = output.last_hidden_state, output.pooler_output
        if self.segments > 1:
            if last.dim() != 4 or last.shape[1] != self.backbone.num_features:
                raise ValueError(
                    "time_segments needs an audio_backbone that ends with a feature map (B, D, h, w), such as a "
                    "ResNet."
                )
            pooled = over_time(last.mean(3), self.segments, "mean")
        return last, pooled, output.hidden_states
