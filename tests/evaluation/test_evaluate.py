# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Encoders of others are measured with their own preprocessing, or one sentence says why they cannot be."""

import json

import pytest
import timm
import torch
from timm.models import save_for_hf
from transformers import (
    BertConfig,
    BertModel,
    CLIPTextConfig,
    CLIPTextModel,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTImageProcessor,
    ViTMAEConfig,
    ViTMAEModel,
    ViTModel,
)

from hf_ssl.cli import main
from hf_ssl.evaluation.encoders import open_model
from hf_ssl.evaluation.evaluate import evaluate
from hf_ssl.recipe import DataConfig, MonitorConfig, RecipeError
from tests.test_cli import mistake


SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def save(folder, model, processor: bool = True) -> str:
    model.save_pretrained(folder)
    if processor:
        ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return str(folder)


def knn(model: str, digits, **monitor) -> dict:
    data = DataConfig(path=str(digits), num_workers=0)
    return evaluate("knn", model, data, MonitorConfig(path=str(digits), **monitor))


@pytest.mark.parametrize(
    "make",
    [
        lambda: ViTModel(ViTConfig(image_size=16, patch_size=8, **SMALL)),
        lambda: ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])),
    ],
)
def test_a_vision_model_of_transformers_is_measured_as_its_own_processor_prepares_images(make, digits, tmp_path):
    model = save(tmp_path, make())
    found = knn(model, digits)
    assert 0 <= found["knn"] <= 1 and (found["bank"], found["queries"], found["failed"]) == (128, 64, [])
    assert found["measured"]["queries"] == "test" and found["measured"]["num_classes"] == 10
    (blank,) = open_model(model).transform.blank(None)
    assert blank.shape == (1, 3, 16, 16) and torch.equal(blank, torch.full_like(blank, -1)), "black, normalized"


@pytest.mark.parametrize(
    ("make", "processor", "why"),
    [
        (lambda: BertModel(BertConfig(vocab_size=20, **SMALL)), False, "BertModel expects input_ids"),
        (
            lambda: CLIPTextModel(CLIPTextConfig(vocab_size=20, bos_token_id=1, eos_token_id=2, **SMALL)),
            False,
            "CLIPTextModel expects input_ids",
        ),
        (lambda: ViTModel(ViTConfig(image_size=16, patch_size=8, **SMALL)), False, "has no image processor for its"),
        (
            lambda: ViTModel(ViTConfig(image_size=32, patch_size=8, **SMALL)),
            True,
            "fails on an image from its own processor",
        ),
        (lambda: ViTMAEModel(ViTMAEConfig(image_size=16, patch_size=8, **SMALL)), True, "no pooled features"),
    ],
)
def test_an_encoder_that_cannot_be_measured_is_one_sentence(make, processor, why, digits, tmp_path):
    with pytest.raises(RecipeError, match=why) as caught:
        knn(save(tmp_path, make(), processor), digits)
    assert "\n" not in str(caught.value)


def timm_folder(folder, **images) -> str:
    save_for_hf(timm.create_model("test_resnet", num_classes=0), folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config["model_args"]["num_classes"]  # transformers passes it itself
    config["pretrained_cfg"] |= {"input_size": [3, 32, 32]} | images
    path.write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize(
    ("images", "why"),
    [
        ({"mean": [0.5, 0.5]}, "image_mean and image_std must have num_channels=3 numbers"),
        ({"std": [0, 0, 0]}, "image_std must be greater than 0"),
        ({"crop_pct": -1}, "crop_pct must be"),
        ({"input_size": "big"}, "input_size must be three numbers"),
        ({"interpolation": "magic"}, "magic"),
    ],
)
def test_a_model_of_timm_with_impossible_images_is_one_sentence(images, why, digits, tmp_path):
    with pytest.raises(RecipeError, match=why) as caught:
        knn(timm_folder(tmp_path, **images), digits)
    assert "\n" not in str(caught.value)


def test_a_model_of_timm_may_resize_as_it_likes(digits, tmp_path):
    assert knn(timm_folder(tmp_path, interpolation="lanczos"), digits)["failed"] == []


@pytest.mark.parametrize(
    ("option", "value"), [("--num-workers", "-1"), ("--batch-size", "0"), ("--k", "0"), ("--clips", "0")]
)
def test_an_impossible_number_is_one_sentence_that_names_it(option, value, digits, capsys):
    said = mistake(capsys, "evaluate", "knn", "nowhere", "--data", str(digits), option, value)
    assert option in said and value in said


def test_the_terminal_says_what_was_measured_on(digits, tmp_path, capsys, caplog):
    model = save(tmp_path, ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])))
    common = ["evaluate", "knn", model, "--data", str(digits / "train.parquet"), "--num-workers", "0", "--k", "200"]
    main(common)
    shown = capsys.readouterr().out
    assert "80 % of train" in shown and "20 % of train" in shown and "seen in pretraining" not in shown
    assert "k=200 exceeds" in caplog.text
    main([*common, "--json"])
    assert json.loads(capsys.readouterr().out)["measured"]["num_queries"] < 26
