# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""What a network does not take is one sentence with a remedy that works, before anything is trained."""

import re

import pytest
import yaml

from hf_ssl.data.fits import check_fits
from hf_ssl.recipe import RecipeError, recipe_from_dict
from hf_ssl.resolve import resolve


def check(model: dict, views: dict | None = None, method: str = "simsiam", **train) -> None:
    sections = {"views": views or {"all": {"size": 32}}, "train": {"epochs": 1, "batch_size": 8} | train}
    recipe = recipe_from_dict({"method": method, "model": model, **sections})
    resolved = resolve(recipe)
    views, config = resolved.views, resolved.config
    check_fits(views, config)


@pytest.mark.parametrize(
    ("backbone", "size", "usual"),
    [
        ("vit_tiny_patch16_224", 40, 224),
        ("swin_tiny_patch4_window7_224", 32, 224),
        ("maxvit_rmlp_pico_rw_256", 32, 256),
        ("levit_128s", 32, 224),
    ],
)
def test_a_size_that_a_backbone_does_not_take_is_said_with_those_that_work(backbone, size, usual):
    with pytest.raises(RecipeError, match=f"{backbone} does not take images of views.all.size={size}") as caught:
        check({"backbone": backbone}, {"all": {"size": size}})
    assert "\n" not in str(caught.value) and f"views.all.size to {usual}" in str(caught.value)
    argument = re.search(r"model.backbone_args=(\{.*\})", str(caught.value))
    if argument:
        check({"backbone": backbone, "backbone_args": yaml.safe_load(argument[1])}, {"all": {"size": size}})


def test_sizes_of_small_crops_and_of_evaluation_count_too():
    with pytest.raises(RecipeError, match="views.local.size=32"):
        check({"backbone": "vit_tiny_patch16_224"}, {"all": {"size": 224}, "local": {"size": 32}}, "swav")
    with pytest.raises(RecipeError, match="model.image_size=64"):
        check({"backbone": "vit_tiny_patch16_224", "image_size": 64}, {"all": {"size": 224}})
    with pytest.raises(RecipeError, match="backbone_args"):
        check({"backbone": "vit_tiny_patch16_224", "backbone_args": {"no_such_argument": 1}})
    check({"backbone": "test_vit"}, {"all": {"size": 48}})


@pytest.mark.parametrize("method", ["barlow_twins", "byol", "simsiam"])
@pytest.mark.parametrize(("batch_size", "accumulation", "least"), [(1, 1, 2), (8, 8, 16)])
def test_one_image_a_forward_is_too_few_for_batchnorm(method, batch_size, accumulation, least):
    with pytest.raises(RecipeError, match=f"set train.batch_size to {least} or more"):
        check({"backbone": "test_resnet"}, method=method, batch_size=batch_size, accumulation=accumulation)
    check({"backbone": "test_resnet"}, method=method, batch_size=least, accumulation=accumulation)
