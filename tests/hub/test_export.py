# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""A run's model loads where hf_ssl is not installed and gives the features of the trained encoder."""

import copy
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModel

from hf_ssl.hub.export import export_checkpoint
from hf_ssl.models import METHODS
from hf_ssl.resolve import model_config
from hf_ssl.training.pretrain import pretrain
from tests.conftest import digit_dataset
from tests.methods import few_steps, model_overrides


FRESH = """
import sys
sys.modules["hf_ssl"] = None  # importing it fails, as where it is not installed
import torch
folder, inputs_file, output_file, plain = sys.argv[1:]
plain = plain == "True"
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, AutoModelForPreTraining
from transformers import pipeline
from PIL import Image
inputs = torch.load(inputs_file)
trust = {} if plain else {"trust_remote_code": True}
results = {}
with torch.no_grad():
    encoder = AutoModel.from_pretrained(folder, **trust)
    results["auto"] = encoder(pixel_values=inputs["image"]).pooler_output
    results["weights"] = {name.split(".", 1)[1]: tensor for name, tensor in encoder.state_dict().items()}
    if plain:
        import timm
        results["timm"] = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(inputs["image"])
    whole = AutoModelForPreTraining.from_pretrained(folder, subfolder="pretraining", trust_remote_code=True)
    output = whole(**inputs["views"])
    results["loss"], results["embeddings"] = output.loss, output.embeddings
    classifier = AutoModelForImageClassification.from_pretrained(folder, num_labels=7, **trust)
    results["logits"] = classifier(pixel_values=inputs["image"]).logits
    pipe = pipeline("image-feature-extraction", model=folder, **trust)
    results["pipeline"] = torch.tensor(pipe(Image.new("RGB", (60, 40), (200, 30, 90)), pool=True))
torch.save(results, output_file)
"""


def trained(output: Path, method: str, *more: str):
    """A finished run, and its model rebuilt from the last checkpoint."""
    recipe = few_steps(method, output, *model_overrides(method), *more)
    data = digit_dataset(0, 48)
    result = pretrain(recipe, dataset=data, bank=data, queries=data)
    model = METHODS[method][1](model_config(recipe, 32))
    model.load_state_dict(load_file(output / "checkpoints/step_00000002/model.safetensors"))
    return result, model.eval()


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("barlow_twins", []),
        ("byol", []),
        ("simsiam", []),
        ("swav", []),
        ("byol", ["model.backbone=resnet10t", "model.padding=same"]),
        ("simsiam", ["model.backbone=resnet10t", "model.stem=small"]),
    ],
    ids=["barlow_twins", "byol", "simsiam", "swav", "byol-same-padding", "simsiam-small-stem"],
)
def test_a_fresh_process_without_hf_ssl_gets_the_trained_features_and_the_loss(method, more, elsewhere, tmp_path):
    plain = not more
    result, model = trained(tmp_path / "run", method, *more)
    torch.manual_seed(0)
    inputs = {"image": torch.randn(4, 3, 32, 32), "views": {"pixel_values": torch.randn(4, 2, 3, 32, 32)}}
    if method == "swav":
        inputs["views"]["local_pixel_values"] = torch.randn(4, 2, 3, 16, 16)
    torch.save(inputs, tmp_path / "inputs.pt")
    files = [str(path) for path in (result.model_dir, tmp_path / "inputs.pt", tmp_path / "out.pt")]
    done = elsewhere.run("-c", FRESH, *files, str(plain))
    assert done.returncode == 0, done.stderr[-3000:]
    loaded = torch.load(tmp_path / "out.pt")
    with torch.no_grad():
        features = model.encoder(pixel_values=inputs["image"]).pooler_output
        output = model(**inputs["views"])
    # The weights are bitwise equal, but their memory alignment affects the last digit of a product.
    trained_weights = model.encoder.backbone.state_dict()
    assert loaded["weights"].keys() == trained_weights.keys()
    assert all(loaded["weights"][name].equal(tensor) for name, tensor in trained_weights.items())
    torch.testing.assert_close(loaded["auto"], features, rtol=1e-5, atol=1e-6)
    if plain:
        torch.testing.assert_close(loaded["timm"], features, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(loaded["embeddings"], output.embeddings, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(loaded["loss"], output.loss, rtol=1e-5, atol=1e-6)
    assert loaded["logits"].shape == (4, 7)
    assert loaded["pipeline"].shape[-1] == features.shape[-1]
    assert result.needs_code is not plain


def test_the_card_has_valid_metadata_and_the_numbers_of_the_run(tmp_path):
    result, _ = trained(tmp_path / "run", "simsiam")
    card = ModelCard.load(result.model_dir / "README.md")
    measured = card.data.eval_results[0]
    assert measured.metric_value == pytest.approx(100 * result.final["knn"], abs=0.01)
    assert {"timm", "transformers", "simsiam"} <= set(card.data.tags)
    assert f"{result.final['knn']:.1%}" in card.text and f"{result.baseline['knn']:.1%}" in card.text
    assert "$" not in card.text.replace("$HOME", "")
    assert str(tmp_path) not in card.content


def test_an_older_model_is_replaced_whole(tmp_path):
    result, _ = trained(tmp_path / "run", "simsiam")
    (result.model_dir / "left_over").write_text("x")
    again = export_checkpoint(tmp_path / "run")
    assert not (again / "left_over").exists()
    assert (again / "model.safetensors").exists()


def test_an_encoder_that_is_too_large_for_one_file(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_ssl.hub.export.MAX_FILE_SIZE", 400_000)
    result, model = trained(tmp_path / "run", "simsiam")
    assert len(list(result.model_dir.glob("model-*.safetensors"))) > 1
    assert not (result.model_dir / "model.safetensors").exists()
    encoder = AutoModel.from_pretrained(result.model_dir)
    image = torch.randn(2, 3, 32, 32)
    own, loaded = model.encoder.backbone.state_dict(), encoder.timm_model.state_dict()
    assert own.keys() == loaded.keys() and all(torch.equal(own[name], loaded[name]) for name in own)
    # The position of weights in a file can affect which kernels are used; copies are aligned alike.
    encoder, model = copy.deepcopy(encoder), copy.deepcopy(model)
    with torch.no_grad():
        expected = model.encoder(image).pooler_output
        torch.testing.assert_close(encoder(image).pooler_output.flatten(1), expected, rtol=0, atol=0)
        torch.testing.assert_close(encoder.timm_model(image), expected, rtol=0, atol=0)
    card = (result.model_dir / "README.md").read_text()
    assert "encoder.timm_model" in card and "hf-hub:" not in card
