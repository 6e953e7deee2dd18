# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Runs that start from pretrained encoders: ours, timm's, and transformers' loaded into timm networks."""

import shutil

import pytest
import timm
import torch
import transformers
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    RegNetConfig,
    RegNetModel,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTModel,
)

from hf_ssl import SimSiamConfig, SimSiamModel, pretrain
from hf_ssl.hub.encoders import copy_by_execution, start_from_encoder
from hf_ssl.models import AvidForAudioClassification, AvidForPreTraining
from hf_ssl.recipe import RecipeError, recipe_from_dict
from tests.conftest import digit_dataset, randomized
from tests.hub.test_publish import simsiam
from tests.methods import fields


@pytest.mark.parametrize("kind", ["ours", "timm-format", "resnet", "regnet"])
def test_a_run_starts_from_a_pretrained_encoder(kind, tmp_path, monkeypatch):
    images = torch.randn(2, 3, 32, 32)
    place, more = tmp_path / "encoder", []
    if kind == "ours":
        model = randomized(SimSiamModel(SimSiamConfig(backbone="resnet10t", stem="small", image_mean=(0.1, 0.2, 0.3))))
        model.save_pretrained(place)
    elif kind == "timm-format":
        before = pretrain(simsiam(tmp_path, f"train.output_dir={place}"), dataset=digit_dataset(0, 48))
        place, model = before.model_dir, AutoModel.from_pretrained(before.model_dir)
    elif kind == "resnet":
        config = ResNetConfig(depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type="basic")
        model, more = randomized(ResNetModel(config)), ["model.backbone=resnet18"]
        model.save_pretrained(place)
    else:
        config = RegNetConfig(hidden_sizes=[48, 104, 208, 440], depths=[1, 3, 6, 6], groups_width=8, layer_type="y")
        model, more = randomized(RegNetModel(config)), ["model.backbone=regnety_004"]
        model.save_pretrained(place)
    recipe = simsiam(tmp_path, f"model.init_from={place}", "optim.lr=0", "train.steps=1", *more)
    if kind in ("ours", "timm-format"):
        del recipe.model["backbone"]
    monkeypatch.setattr(torch.nn.modules.batchnorm._BatchNorm, "momentum", 0.0, raising=False)
    tensors, _ = start_from_encoder(recipe)
    before = dict(recipe.model)
    result = pretrain(recipe, dataset=digit_dataset(0, 16))
    code = {"trust_remote_code": True} if kind == "ours" else {}
    trained = AutoModel.from_pretrained(result.model_dir, **code)
    state = {name.split(".", 1)[1]: tensor for name, tensor in trained.state_dict().items()}
    parameters = [name.split(".", 1)[1] for name, _ in trained.named_parameters()]
    assert parameters and all(state[name].equal(tensors[name]) for name in parameters)
    assert recipe.model == before, "pretrain changed its argument"
    if kind == "ours":
        assert list(trained.config.image_mean) == [0.1, 0.2, 0.3] and trained.config.stem == "small"
    trained.eval()
    source = getattr(trained, "timm_model", getattr(trained, "backbone", None))
    source.load_state_dict(tensors)
    with torch.no_grad():
        expected = model(images).pooler_output.flatten(1)
        torch.testing.assert_close(trained(images).pooler_output.flatten(1), expected, rtol=1e-3, atol=1e-4)


def test_a_vit_of_transformers_becomes_timms(tmp_path):
    config = ViTConfig(hidden_size=192, num_hidden_layers=12, num_attention_heads=3, intermediate_size=768)
    model = randomized(ViTModel(config))
    model.save_pretrained(tmp_path)
    fields = {"init_from": str(tmp_path), "backbone": "vit_tiny_patch16_224"}
    tensors, _ = start_from_encoder(recipe_from_dict({"method": "byol", "model": fields, "train": {"steps": 1}}))
    state = model.state_dict()
    query = next(
        tensor for name, tensor in state.items() if ".0." in name and name.endswith(("query.weight", "q_proj.weight"))
    )
    assert tensors["blocks.0.attn.qkv.weight"][:192].equal(query)
    assert tensors["pos_embed"].equal(state["embeddings.position_embeddings"])


def test_timm_weights_fill_what_the_recipe_leaves_out(monkeypatch):
    create, source = (
        timm.create_model,
        randomized(timm.create_model("resnet18.a1_in1k", pretrained=False, num_classes=0)),
    )

    def offline(name, pretrained=False, **kwargs):
        return source if pretrained else create(name, **kwargs)

    monkeypatch.setattr(timm, "create_model", offline)
    content = {"method": "barlow_twins", "model": {"init_from": "timm/resnet18.a1_in1k"}, "train": {"steps": 1}}
    recipe = recipe_from_dict(content)
    tensors, decided = start_from_encoder(recipe)
    assert decided["backbone"] == "resnet18" and tensors["conv1.weight"].equal(source.conv1.weight)
    recipe.model["backbone"] = "resnet50"
    with pytest.raises(RecipeError, match="set model.backbone=resnet18"):
        start_from_encoder(recipe)
    recipe.model.update(backbone="resnet18", stem="small")
    with pytest.raises(RecipeError, match="do not fit resnet18 as configured"):
        start_from_encoder(recipe)


def test_a_run_that_started_from_an_encoder_continues_without_it(tmp_path, caplog):
    place = tmp_path / "encoder"
    SimSiamModel(SimSiamConfig(backbone="test_resnet", image_mean=(0.1, 0.2, 0.3))).save_pretrained(place)
    more = ("train.steps=4", "train.checkpoint_every=1")
    recipe = simsiam(tmp_path, f"model.init_from={place}", *more)
    del recipe.model["backbone"]
    first = pretrain(recipe, dataset=digit_dataset(0, 16))
    shutil.rmtree(place)
    shutil.rmtree(first.model_dir)
    (tmp_path / "run/checkpoints/step_00000004").rename(tmp_path / "gone")
    again = pretrain(recipe, dataset=digit_dataset(0, 16))
    assert again.final["loss"] == first.final["loss"]


@pytest.mark.parametrize(
    ("place", "backbone", "said"),
    [
        ("nowhere", "resnet18", "nowhere"),
        ("other", "resnet34", "do not match this backbone"),
        ("other", None, "set its timm network"),
    ],
)
def test_what_cannot_be_a_start_is_said(place, backbone, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ResNetModel(ResNetConfig(depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 8, 8], embedding_size=8)).save_pretrained(
        "other"
    )
    model = {"init_from": place} | ({"backbone": backbone} if backbone else {})
    with pytest.raises(RecipeError, match=said):
        start_from_encoder(recipe_from_dict({"method": "byol", "model": model, "train": {"steps": 1}}))


VIT = {"hidden_size": 192, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 768}
DINO = {key: value for key, value in VIT.items() if key != "intermediate_size"} | {"image_size": 70, "patch_size": 14}
SMALL = {"depth": 2, "embed_dim": 192, "num_heads": 3}
TF = {"pad_type": "same", "bn_eps": 1e-3}
HALF = {"width_coefficient": 1.0, "depth_coefficient": 1.0, "image_size": 64, "hidden_dim": 1280}
MERGED = {"use_relative_position_bias": True, "use_mean_pooling": True}
ENCODERS = {  # transformers' models: fields of the configuration; timm's name and arguments; pixels
    "ViT": (VIT, "vit_tiny_patch16_224", {"depth": 2}, 224),
    "DeiT": (VIT, "deit_tiny_distilled_patch16_224", {"depth": 2}, 224),
    "Swin": ({"depths": [1, 1, 2, 1]}, "swin_tiny_patch4_window7_224", {"depths": (1, 1, 2, 1)}, 224),
    "Beit": (VIT | MERGED, "beit_base_patch16_224", SMALL, 224),
    "ConvNextV2": ({"depths": [1, 1, 2, 1]}, "convnextv2_tiny", {"depths": (1, 1, 2, 1)}, 64),
    "Dinov2WithRegisters": (DINO, "vit_small_patch14_reg4_dinov2", SMALL | {"img_size": 70}, 70),
    "DINOv3ViT": (VIT | {"num_register_tokens": 4}, "vit_small_patch16_dinov3_qkvb", SMALL, 256),
    "CLIPVision": (VIT | {"patch_size": 16}, "vit_base_patch16_clip_quickgelu_224", SMALL, 224),
    "SiglipVision": (VIT, "vit_base_patch16_siglip_gap_224", SMALL | {"act_layer": "gelu_tanh"}, 224),
    "MobileNetV2": ({}, "mobilenetv2_100", TF, 64),
    "PvtV2": ({}, "pvt_v2_b0", {}, 64),
    "Swinv2": ({"window_size": 8, "image_size": 256}, "swinv2_tiny_window8_256", {}, 256),
    "ConvNext": ({}, "convnext_tiny", {}, 64),
    "DINOv3ConvNext": ({}, "convnext_tiny", {}, 64),
    "Dinov2": (DINO, "vit_small_patch14_dinov2", SMALL | {"img_size": 70}, 70),
    "MobileNetV1": ({}, "mobilenetv1_100", TF, 64),
    "EfficientNet": (HALF, "tf_efficientnet_b0", {}, 64),
    "FocalNet": ({}, "focalnet_tiny_srf", {}, 224),
    "Hiera": ({"depths": [1, 2, 7, 2]}, "hiera_tiny_224", {}, 224),
    "MobileViT": ({}, "mobilevit_s", {}, 256),
    "MobileViTV2": ({}, "mobilevitv2_100", {}, 256),
    "ViTMAE": (VIT | {"mask_ratio": 0.0}, "vit_tiny_patch16_224", {"depth": 2}, 224),
    "ViTMSN": (VIT, "vit_tiny_patch16_224", {"depth": 2}, 224),
    "IJepa": (
        VIT,
        "vit_tiny_patch16_224",
        {"depth": 2, "class_token": False, "global_pool": "avg", "fc_norm": False},
        224,
    ),
    "Bit": ({}, "resnetv2_50x1_bit", {}, 64),
    "ResNet": ({}, "resnet50", {}, 64),
    "PoolFormer": ({}, "poolformer_s12", {}, 224),
    "Levit": ({}, "levit_128", {}, 224),
    "Data2VecVision": (VIT | MERGED, "beit_base_patch16_224", SMALL, 224),
}
FAST = {"DeiT", "Swin", "Beit", "Dinov2WithRegisters", "CLIPVision"}


@pytest.mark.parametrize(
    "name",
    [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in ENCODERS if name != "ViT"],
)
def test_an_encoder_of_transformers_becomes_timms(name):
    fields, network, arguments, size = ENCODERS[name]
    source = randomized(getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**fields)))
    target = timm.create_model(network, num_classes=0, **arguments)
    copy_by_execution(source, target, size)
    images = torch.randn(1, 3, size, size)
    with torch.no_grad():
        expected, found = source(images).last_hidden_state, target.forward_features(images)
    if name in ("CLIPVision", "ViTMAE", "Hiera", "DINOv3ConvNext"):  # tokens differ or are reordered; compare pooled
        return
    if expected.shape != found.shape:
        found = found.flatten(2).transpose(1, 2) if name == "FocalNet" else found.flatten(1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_layers_of_the_same_sizes_that_compute_something_else_are_refused():
    source = randomized(ViTModel(ViTConfig(**VIT, hidden_act="relu")))
    target = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=2)
    with pytest.raises(ValueError, match="give different features"):
        copy_by_execution(source, target, 224)


def test_the_vision_half_of_clip_starts_and_a_text_model_does_not(tmp_path):
    clip = CLIPModel(CLIPConfig(vision_config=VIT | {"patch_size": 16}, text_config=VIT | {"vocab_size": 100}))
    bert = BertModel(BertConfig(**VIT, vocab_size=100))
    model = {"backbone": "vit_base_patch16_clip_quickgelu_224", "backbone_args": SMALL, "init_from": str(tmp_path)}
    for source in (clip, bert):
        source.half().save_pretrained(tmp_path)
        recipe = recipe_from_dict({"method": "byol", "model": dict(model), "train": {"steps": 1}})
        if source is clip:
            expected = clip.state_dict()["vision_model.embeddings.patch_embedding.weight"].float()
            assert start_from_encoder(recipe)[0]["patch_embed.proj.weight"].equal(expected)
            continue
        with pytest.raises(RecipeError, match="not an image encoder"):
            start_from_encoder(recipe)


def test_avids_video_tower_starts_from_an_encoder_of_images(tmp_path, monkeypatch):
    source = randomized(timm.create_model("test_resnet", num_classes=0))
    create = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda name, pretrained=False, **k: source if pretrained else create(name, **k)
    )
    own = fields("avid", init_from="timm/test_resnet")
    recipe = recipe_from_dict({"method": "avid", "model": own, "train": {"steps": 1}})
    tensors, decided = start_from_encoder(recipe)
    assert decided["image_mean"] == tuple(source.pretrained_cfg["mean"]) and "backbone" not in decided
    model = AvidForPreTraining.from_timm("test_resnet", **fields("avid"))
    model.load_encoder(tensors, "timm/test_resnet")
    frames = torch.randn(2, 2, 3, 32, 32)
    with torch.no_grad():
        found = model.eval().encoder.video_tower(frames)[1]
        torch.testing.assert_close(found, source(frames.flatten(0, 1)).unflatten(0, (2, 2)).mean(1))
    recipe.model["video_backbone"] = "r2plus1d_18"
    with pytest.raises(RecipeError, match="set model.video_backbone=test_resnet"):
        start_from_encoder(recipe)
    with pytest.raises(ValueError, match="needs a timm video tower"):
        AvidForAudioClassification.from_timm("test_resnet", **fields("avid"))
