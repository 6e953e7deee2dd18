# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints exported manually, pushed during training, and exported for serving."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hf_ssl import SimSiamConfig, SimSiamModel, export_for_serving, pretrain
from hf_ssl.errors import UserError
from hf_ssl.hub.export import export_checkpoint
from hf_ssl.hub.push import PushError
from hf_ssl.models import AvidConfig, AvidModel
from hf_ssl.recipe import RecipeError
from hf_ssl.training import publish
from tests.conftest import digit_dataset, randomized
from tests.methods import few_steps, fields


def simsiam(folder, *more: str):
    overrides = ["train.steps=6", "model.projector_dim=32", "train.checkpoint_every=0.67", "monitor.every=0"]
    return few_steps("simsiam", folder / "run", *overrides, *more)


def files_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_checkpoint_exports_to_the_folder_that_the_run_left(tmp_path):
    result = pretrain(simsiam(tmp_path), dataset=digit_dataset(0, 48))
    by_hand = export_checkpoint(tmp_path / "run", tmp_path / "by_hand")
    assert files_of(by_hand) == files_of(result.model_dir)
    first = sorted((tmp_path / "run" / "checkpoints").iterdir())[0]
    earlier = export_checkpoint(first, tmp_path / "earlier")
    saved = load_file(first / "model.safetensors")
    weights = load_file(earlier / "model.safetensors")
    assert all(saved[f"encoder.backbone.{name}"].equal(tensor) for name, tensor in weights.items())
    assert "- 4 steps" in (earlier / "README.md").read_text()
    with pytest.raises(RecipeError, match="already an exported model"):
        export_checkpoint(earlier)


class Pushes:
    """Replaces the network: records pushes, and fails on demand."""

    def __init__(self, monkeypatch, fail: bool = False, status: int | None = None):
        self.made, self.seen, self.fail, self.status = [], [], fail, status
        monkeypatch.setattr(publish, "push", self.push)
        monkeypatch.setattr(publish, "create_repo", self.create)

    def create(self, repo_id, private):
        self.made.append((repo_id, private))
        if self.status is not None or self.fail:
            raise PushError(f"{repo_id} was not published", self.status)

    def push(self, folder, repo_id, private, message):
        time.sleep(0.2)
        self.seen.append((message, threading.current_thread() is threading.main_thread()))
        if self.fail:
            raise PushError(f"{repo_id} was not published and is unchanged")
        assert (folder / "model.safetensors").exists() and (folder / "README.md").exists()
        return "address"


def test_checkpoints_are_pushed_in_the_background_and_the_end_in_front(tmp_path, monkeypatch, caplog):
    pushes = Pushes(monkeypatch)
    recipe = simsiam(tmp_path, "train.push_to_hub=user/name", "train.push_private=true")
    pretrain(recipe, dataset=digit_dataset(0, 48))
    assert pushes.made == [("user/name", True)]
    assert ("Step 2", False) in pushes.seen and pushes.seen[-1] == ("Step 6", True)


@pytest.mark.parametrize("failing", [True, False])
def test_a_push_that_fails_changes_nothing_of_the_run(failing, tmp_path, monkeypatch):
    recipe = simsiam(tmp_path, *(["train.push_to_hub=user/name"] if failing else []))
    Pushes(monkeypatch, fail=failing)
    result = pretrain(recipe, dataset=digit_dataset(0, 48))
    plain = simsiam(tmp_path, f"train.output_dir={tmp_path / 'plain'}")
    expected = pretrain(plain, dataset=digit_dataset(0, 48))
    weights, others = (load_file(r.model_dir / "model.safetensors") for r in (result, expected))
    assert all(weights[name].equal(tensor) for name, tensor in others.items())


def test_a_token_that_may_not_write_is_said_before_training(tmp_path, monkeypatch):
    Pushes(monkeypatch, status=403)
    with pytest.raises(UserError, match="push_to_hub: user/name was not published"):
        pretrain(simsiam(tmp_path, "train.push_to_hub=user/name"), dataset=digit_dataset(0, 48))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("onnx", [True, False], ids=["onnx", "torch"])
@pytest.mark.parametrize("kind", ["images", "clips"])
def test_a_served_graph_computes_what_the_model_does(onnx, kind, tmp_path):
    if kind == "images":
        model = randomized(SimSiamModel(SimSiamConfig(backbone="resnet10t", image_size=32, stem="small")))
        inputs = {"pixel_values": torch.randn(7, 3, 32, 32)}
    else:
        model = randomized(AvidModel(AvidConfig(**fields("avid"))))
        inputs = {"pixel_values_videos": torch.randn(7, 2, 3, 32, 32)}
        inputs["input_values"] = torch.randn(7, model.config.num_audio_frames, 33)
    model.save_pretrained(tmp_path)
    file, error = export_for_serving(str(tmp_path), onnx=onnx)
    assert file.parent == tmp_path and error < 1e-3
    with torch.no_grad():
        output = model(**inputs)
    names = ("pooler_output", "last_hidden_state") if kind == "images" else ("video_embeds", "audio_embeds")
    if onnx:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(file))
        found = session.run(list(names), {name: tensor.numpy() for name, tensor in inputs.items()})
    else:
        found = torch.export.load(file).module()(*inputs.values())
    for name, array in zip(names, found, strict=True):
        torch.testing.assert_close(
            torch.from_numpy(np.asarray(array.detach() if not onnx else array)), output[name], rtol=1e-3, atol=1e-4
        )


def test_nothing_to_serve_is_said(tmp_path):
    with pytest.raises(RecipeError, match="could not be loaded as an encoder"):
        export_for_serving(str(tmp_path), onnx=True)


def test_a_disk_that_is_full_leaves_the_served_graph_that_was_there(tmp_path, monkeypatch):
    SimSiamModel(SimSiamConfig(backbone="test_resnet", image_size=32)).save_pretrained(tmp_path)
    (tmp_path / "encoder.pt2").write_bytes(b"of before")
    before = sorted(path.name for path in tmp_path.iterdir())

    def save(program, file):
        Path(file).write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:659] . unexpected pos 128 vs 22")

    monkeypatch.setattr(torch.export, "save", save)
    with pytest.raises(UserError, match=r"encoder\.pt2 could not be written .*; free some space") as caught:
        export_for_serving(str(tmp_path), onnx=False)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert (tmp_path / "encoder.pt2").read_bytes() == b"of before"
