# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Exported processors give a network the same input as our evaluation and timm do."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from transformers import AutoImageProcessor, BitImageProcessor

from hf_ssl.data.images import ImageInference
from hf_ssl.data.views import eval_image
from hf_ssl.hub.export import write_repo
from hf_ssl.models import AvidConfig, SimSiamConfig, SimSiamForPreTraining
from hf_ssl.models.image_processing_ssl import image_processor
from hf_ssl.models.processing_avid import avid_processor


# Short sides of 36.57 and 73.14 pixels, and long sides whose crop starts at half a pixel.
CASES = [
    (32, 0.875, (60, 40)),
    (32, 0.875, (41, 40)),
    (64, 0.875, (90, 223)),
    (48, 1.0, (131, 100)),
    (33, 0.9, (97, 50)),
]


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.fromarray(load_sample_images().images[0])


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("size", "crop_pct", "shape"), CASES)
def test_an_exported_processor_resizes_crops_and_normalizes_as_the_evaluation_and_timm(
    photo, size, crop_pct, shape, interpolation
):
    image = photo.resize(shape)
    config = SimSiamConfig(image_size=size, crop_pct=crop_pct, interpolation=interpolation)
    exported = image_processor(config)(image, return_tensors="pt")["pixel_values"]
    transform = ImageInference.of(config)
    pixels = torch.from_numpy(eval_image(image, size, crop_pct, interpolation))[None]
    evaluated = transform.inputs(pixels, torch.device("cpu"))["pixel_values"]
    as_timm = timm.data.create_transform(
        (3, size, size), crop_pct=crop_pct, interpolation=interpolation, mean=config.image_mean, std=config.image_std
    )(image)[None]
    level = 1 / 255 / 0.224
    assert exported.shape == (1, 3, size, size)
    for other in (evaluated, as_timm):
        assert (exported - other).abs().max() < 2.5 * level and (exported - other).abs().mean() < 0.5 * level
    if min(shape) != max(shape) and size != 48:
        assert (exported - exported.roll(1, 3)).abs().mean() > 2 * level, "a pixel aside is seen"


def test_a_repo_of_custom_code_has_the_same_processor_and_a_stock_one_without_trust(photo, tmp_path):
    model = SimSiamForPreTraining(
        SimSiamConfig(backbone="test_resnet", stem="small", image_size=32, projector_dim=8, predictor_hidden=4)
    )
    write_repo(tmp_path / "repo", model, model.state_dict(), {})
    saved = json.loads((tmp_path / "repo" / "preprocessor_config.json").read_text())
    assert saved["size"] == {"shortest_edge": 36} and (tmp_path / "repo" / "image_processing_ssl.py").exists()
    image = photo.resize((61, 40))
    ours = AutoImageProcessor.from_pretrained(tmp_path / "repo", trust_remote_code=True)
    expected = image_processor(model.config)(image, return_tensors="pt")["pixel_values"]
    assert torch.equal(ours(image, return_tensors="pt")["pixel_values"], expected)
    stock = AutoImageProcessor.from_pretrained(tmp_path / "repo")
    assert type(stock) is BitImageProcessor and stock(image, return_tensors="pt")["pixel_values"].shape[2:] == (32, 32)


@pytest.mark.parametrize("shape", [(60, 40), (61, 40), (91, 223)])
def test_frames_of_a_video_are_cropped_where_the_evaluation_crops_them(photo, shape):
    config = AvidConfig(image_size=32, num_frames=2)
    frame = photo.resize(shape)
    frames = np.stack([np.asarray(frame)] * 2)
    seen = avid_processor(config).video_processor(frames, input_data_format="channels_last")["pixel_values_videos"][0]
    pixels = torch.from_numpy(eval_image(frame, 32, config.crop_pct, "bilinear"))[None]
    evaluated = ImageInference.of(config).inputs(pixels, torch.device("cpu"))["pixel_values"]
    assert (torch.as_tensor(np.asarray(seen[0])) - evaluated[0]).abs().max() < 2.5 / 255 / 0.224
