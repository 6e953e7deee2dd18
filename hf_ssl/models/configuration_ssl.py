# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Configuration shared by all methods: the backbone and its image input."""

import math
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


TINY = 1e-12  # lower bound for values that must be positive
WIDEST = 131072  # largest layer width


def short_side(image_size: int, crop_pct: float) -> int:
    """Size in pixels to which the short side is resized before the center crop; rounded down, as in timm."""
    return math.floor(image_size / crop_pct)


def check_ranges(config: PreTrainedConfig, ranges: dict[str, tuple[float, float]]) -> None:
    """Raise ValueError if a field (a number, a list of numbers, or None) is outside its closed range."""
    for field, (low, high) in ranges.items():
        value = getattr(config, field)
        for number in value if isinstance(value, list | tuple) else [value]:
            if number is not None and not low <= number <= high:
                least = "greater than 0" if low == TINY else f"at least {low:g}"
                raise ValueError(f"{field} must be {least} and at most {high:g}, not {str(number)[:30]}.")


def check_arguments(arguments: Any, name: str) -> None:
    """Raise ValueError for unsafe or absurd arguments of `timm.create_model`.

    Refused are arguments that load other weights (timm unpickles `checkpoint_path`) and numbers above `WIDEST`.
    """
    if isinstance(arguments, dict):
        for key, value in arguments.items():
            if str(key).startswith(("checkpoint", "pretrained", "cache_dir")):
                raise ValueError(f"{name} must not contain {key}; use init_from for pretrained weights.")
            check_arguments(value, f"{name}.{key}")
    elif isinstance(arguments, list | tuple):
        for value in arguments:
            check_arguments(value, name)
    elif isinstance(arguments, float | int) and not abs(arguments) <= WIDEST:
        raise ValueError(f"{name} must be a number up to {WIDEST}, not {str(arguments)[:30]}.")


def check_choices(config: PreTrainedConfig, choices: dict[str, tuple[str, ...]]) -> None:
    """Raise ValueError if a field is not one of its valid values."""
    for field, valid in choices.items():
        if getattr(config, field) not in valid:
            raise ValueError(f"{field}={getattr(config, field)!r} is not valid; choose {' or '.join(valid)}.")


@strict
class ImageInputConfig(PreTrainedConfig):
    """Image or frame input of a model.

    Args:
        image_size (`int`, *optional*, defaults to 224): side length of the images at inference, in pixels.
        num_channels (`int`, *optional*, defaults to 3): number of image channels.
        image_mean, image_std (`tuple`, *optional*): normalization of images in 0..1; ImageNet's by default.
        crop_pct (`float`, *optional*, defaults to 0.875): at inference the short side is resized to
            `image_size / crop_pct` before the center crop.
        interpolation (`str`, *optional*, defaults to `"bicubic"`): interpolation of that resize.
    """

    image_size: int = 224
    num_channels: int = 3
    image_mean: list[float | int] | tuple[float | int, ...] = (0.485, 0.456, 0.406)
    image_std: list[float | int] | tuple[float | int, ...] = (0.229, 0.224, 0.225)
    crop_pct: float | int = 0.875
    interpolation: str = "bicubic"

    backbone_prefix = ""  # prefix of the fields that describe the image encoder

    @classmethod
    def encoder_field(cls, name: str) -> str:
        """Name of a field of `SSLConfig` in this configuration."""
        return cls.backbone_prefix + name if name.startswith("backbone") else name

    def validate_images(self):
        check_ranges(
            self,
            {
                "image_size": (1, 8192),
                "num_channels": (1, 1024),
                "crop_pct": (0.01, 1),
                "image_mean": (-1e6, 1e6),
                "image_std": (TINY, 1e6),
            },
        )
        check_choices(self, {"interpolation": ("bilinear", "bicubic")})
        if not len(self.image_mean) == len(self.image_std) == self.num_channels:
            raise ValueError(f"image_mean and image_std must have num_channels={self.num_channels} numbers each.")


@strict
class SSLConfig(ImageInputConfig):
    """Base configuration of every method.

    Args:
        backbone (`str`, *optional*, defaults to `"resnet50"`): a timm model name.
        backbone_args (`dict`, *optional*): passed to `timm.create_model` (`drop_path_rate`, `img_size`, RegNet's `w0`
            ...).
        stem (`str`, *optional*, defaults to `"imagenet"`): `"small"` gives a ResNet or RegNet a stem with stride 1 and
            no pooling, for images of about 32 pixels; `"small_linear"` also removes the ReLU from a ResNet's stem, as
            in lightly's CIFAR-10 benchmark; `"wide"` makes a ResNet's first convolution as wide as its first stage,
            as in the papers' wide ResNets (timm keeps 64 channels).
        padding (`str`, *optional*, defaults to `"torch"`): `"same"` pads strided convolutions and the max-pool as
            TensorFlow does (an extra pixel at the bottom and right), as DeepMind's BYOL weights expect.
        first_shortcut (`str`, *optional*, defaults to `"identity"`): `"projection"` puts a convolution and BatchNorm
            into the shortcut of a ResNet's first block, as in DeepMind's ResNet-18 and 34; bottlenecks always have
            them.
        image_size, num_channels, image_mean, image_std, crop_pct, interpolation: see `ImageInputConfig`.
        zero_init_residual (`bool`, *optional*, defaults to `False`): initialize residual branches to zero, where
            timm's blocks support it (ResNet, RegNet).
    """

    modality = "images"  # see hf_ssl.data.modality
    backbone: str = "resnet50"
    backbone_args: dict[str, Any] | None = None
    stem: str = "imagenet"
    padding: str = "torch"
    first_shortcut: str = "identity"
    zero_init_residual: bool = False

    def check_views(self, num_global: int, num_local: int, batch_size: int) -> None:
        """Raise ValueError if the method cannot use this number of views per image; most compare two global views."""
        if (num_global, num_local) != (2, 0):
            raise ValueError(
                f"the method compares two global views of an image, not {num_global} and {num_local} local ones; set "
                "views.first.count=1, views.second.count=1 and views.local.count=0."
            )

    @property
    def backbones(self) -> list[str]:
        """Names of the networks that the method uses."""
        return [self.backbone]

    @property
    def timm_backbones(self) -> list[str]:
        """Names of the timm models that the method uses."""
        return [self.backbone]

    def validate_backbone(self):
        stems = ("imagenet", "small", "small_linear", "wide")
        shortcuts = ("identity", "projection")
        check_choices(self, {"stem": stems, "padding": ("torch", "same"), "first_shortcut": shortcuts})
        check_arguments(self.backbone_args, "backbone_args")
