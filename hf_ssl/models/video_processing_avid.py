# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Normalize and center-crop frames for AVID's video network."""

import torchvision.transforms.functional as TF
from transformers import BaseVideoProcessor


class AvidVideoProcessor(BaseVideoProcessor):
    """Frames (T, H, W, C) or (T, C, H, W) -> `pixel_values_videos` (B, T, C, size, size).
    `num_frames` and `fps` tell an `AvidProcessor` how to sample a file; frames passed in are used as they are.
    `num_frames` and `fps` say how an `AvidProcessor` takes frames out of a file; frames given are taken as they are.
    """

    resample = 2  # bilinear
    image_mean = [0.485, 0.456, 0.406]
    image_std = [0.229, 0.224, 0.225]
    size = {"shortest_edge": 256}
    default_to_square = False
    crop_size = {"height": 224, "width": 224}
    do_resize = True
    do_center_crop = True
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    do_convert_rgb = True
    do_sample_frames = False
    num_frames = 8
    fps = 16
    model_input_names = ["pixel_values_videos"]

    def center_crop(self, image, size, **kwargs):
        """As in training's evaluation: rounds half a pixel to even, where transformers rounds down."""
        return TF.center_crop(image, [size.height, size.width])


AvidVideoProcessor.register_for_auto_class()
