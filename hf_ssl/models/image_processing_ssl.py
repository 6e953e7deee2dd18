# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Resize, center-crop and normalize images for an encoder, as timm and hf_ssl's evaluation do."""

from typing import Any

import torchvision.transforms.functional as TF
from transformers import BitImageProcessor

from .configuration_ssl import SSLConfig, short_side


class SSLImageProcessor(BitImageProcessor):
    """transformers' processor, except that the center crop rounds half a pixel to even instead of down."""

    def center_crop(self, image, size, **kwargs):
        return TF.center_crop(image, [size.height, size.width])

    def to_dict(self) -> dict[str, Any]:
        """Without `trust_remote_code` the stock class is loaded, whose crop may be off by one pixel."""
        return super().to_dict() | {"image_processor_type": "BitImageProcessor"}


def image_processor(config: SSLConfig) -> SSLImageProcessor:
    """Image processor for a configuration; its `save_pretrained` writes all files that a repo needs."""
    return SSLImageProcessor(
        size={"shortest_edge": short_side(config.image_size, config.crop_pct)},
        crop_size={"height": config.image_size, "width": config.image_size},
        image_mean=list(config.image_mean),
        image_std=list(config.image_std),
        resample=3 if config.interpolation == "bicubic" else 2,
        do_convert_rgb=config.num_channels == 3,
    )


SSLImageProcessor.register_for_auto_class()
