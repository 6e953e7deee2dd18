# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Image sizes that a network does not accept: a clear error with a working remedy, before training starts."""

import pytest

from hf_ssl.data.fits import check_fits
from hf_ssl.recipe import RecipeError, recipe_from_dict
from hf_ssl.resolve import Resolved, resolve


def check(model: dict, views: dict | None = None, method: str = "simsiam", **train) -> Resolved:
    sections = {"views": views or {"all": {"size": 32}}, "train": {"epochs": 1, "batch_size": 8} | train}
    recipe = recipe_from_dict({"method": method, "model": model, **sections})
    resolved = resolve(recipe)
    check_fits(resolved.views, resolved.config)
    return resolved


@pytest.mark.parametrize(
    ("backbone", "size", "more"),
    [
        ("vit_tiny_patch16_224", 32, {"dynamic_img_size": True}),
        ("vit_tiny_patch16_224", 40, {"dynamic_img_size": True, "dynamic_img_pad": True}),
        ("swin_tiny_patch4_window7_224", 32, {"dynamic_img_size": True}),
        ("levit_128s", 32, {}),
    ],
)
def test_a_network_for_one_size_is_made_for_that_of_the_views(backbone, size, more):
    resolved = check({"backbone": backbone}, {"all": {"size": size}})
    assert resolved.config.backbone_args == {"img_size": size, **more}


@pytest.mark.parametrize("backbone", ["test_vit", "test_resnet", "vit_tiny_patch16_224"])
def test_a_network_that_takes_the_views_is_left_as_it_is(backbone):
    size = 224 if backbone.startswith("vit") else 48
    assert check({"backbone": backbone}, {"all": {"size": size}}).config.backbone_args is None


def test_small_crops_and_the_size_at_inference_count_too():
    both = {"all": {"size": 64}, "local": {"size": 32}}
    for backbone in ("vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"):
        assert check({"backbone": backbone}, both, "swav").config.backbone_args["dynamic_img_size"]
    check({"backbone": "vit_tiny_patch16_224", "image_size": 64}, {"all": {"size": 224}})
    own = check({"backbone": "vit_tiny_patch16_224", "backbone_args": {"img_size": 96}}, {"all": {"size": 64}})
    assert own.config.backbone_args == {"img_size": 96, "dynamic_img_size": True}, "what is set stays"


def test_sizes_that_a_network_cannot_take_are_said_with_one_that_works():
    with pytest.raises(RecipeError, match="levit_128s does not support") as caught:
        check({"backbone": "levit_128s"}, {"all": {"size": 64}, "local": {"size": 32}}, "swav")
    assert "\n" not in str(caught.value) and "views.local.size to one size, such as 224" in str(caught.value)
    check({"backbone": "levit_128s"}, {"all": {"size": 64}}, "swav")
    with pytest.raises(RecipeError, match="maxvit_rmlp_pico_rw_256 does not support views.all.size=33"):
        check({"backbone": "maxvit_rmlp_pico_rw_256"}, {"all": {"size": 33}})
    with pytest.raises(RecipeError, match="backbone_args"):
        check({"backbone": "vit_tiny_patch16_224", "backbone_args": {"no_such_argument": 1}})


@pytest.mark.parametrize("method", ["barlow_twins", "byol", "simsiam"])
@pytest.mark.parametrize(("batch_size", "accumulation", "least"), [(1, 1, 2), (8, 8, 16)])
def test_one_image_a_forward_is_too_few_for_batchnorm(method, batch_size, accumulation, least):
    with pytest.raises(RecipeError, match=f"set train.batch_size to {least} or more"):
        check({"backbone": "test_resnet"}, method=method, batch_size=batch_size, accumulation=accumulation)
    check({"backbone": "test_resnet"}, method=method, batch_size=least, accumulation=accumulation)
