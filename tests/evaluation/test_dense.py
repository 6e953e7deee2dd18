# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Dense probes learn masks, count what counts, continue exactly, and do not depend on the number of processes."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from transformers import SwinConfig, SwinModel, ViTConfig, ViTImageProcessor, ViTModel

from hf_ssl.cli import main
from hf_ssl.data.masks import masked_sources
from hf_ssl.evaluation.dense import feature_map, figures, overlaps, patch_pixels, slide, window_starts, winner
from hf_ssl.evaluation.encoders import open_model
from hf_ssl.evaluation.protocols import DENSE_PROTOCOLS
from hf_ssl.recipe import DataConfig, MonitorConfig, RecipeError, TrainConfig
from hf_ssl.training import dense as module
from hf_ssl.training.dense import dense
from tests.methods import save_encoder
from tests.runs import start


SETTINGS = replace(DENSE_PROTOCOLS["small"], steps=12, batch_size=4, lr=(0.05,), dropout=0.1)


def picture(seed: int, size: tuple[int, int] = (48, 40)) -> tuple[Image.Image, Image.Image]:
    """A dark image with a bright box: class 3 in its mask, beside class 1, and a border that is ignored."""
    chance = np.random.default_rng(seed)
    pixels = chance.integers(0, 60, (size[1], size[0], 3)).astype(np.uint8)
    mask = np.ones(size[::-1], np.uint8)
    y, x = chance.integers(4, 14, 2)
    pixels[y : y + 18, x : x + 22] += 150
    mask[y : y + 18, x : x + 22] = 3
    mask[:2] = 255
    return Image.fromarray(pixels), Image.fromarray(mask)


def write(folder: Path, count: int = 12) -> Path:
    for i in range(count):
        split = "train" if i < count * 2 // 3 else "test"
        for kind, image in zip(("images", "masks"), picture(i), strict=True):
            (folder / split / kind).mkdir(parents=True, exist_ok=True)
            image.save(folder / split / kind / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def masks(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("masks"))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    return save_encoder(tmp_path_factory.mktemp("encoder"))


def probe(encoder: str, data: Path | str, folder: Path, settings=SETTINGS, **more) -> dict:
    where = DataConfig(path=str(data), num_workers=0)
    train = TrainConfig(precision="no")
    return dense(encoder, where, MonitorConfig(path=str(data)), settings, folder=Path(folder), train=train, **more)


def test_iou_is_that_of_a_brute_force_count():
    chance = np.random.default_rng(0)
    told, masks = (chance.integers(0, 4, (5, 9, 7)) for _ in range(2))
    masks[chance.random(masks.shape) < 0.2] = 255
    told[told == 3], masks[masks == 3] = 2, 0  # nobody tells class 3, and it is nowhere
    counts = torch.stack([overlaps(torch.tensor(t), torch.tensor(m), 4) for t, m in zip(told, masks, strict=True)])
    found = figures(counts, [10, 11, 12, 13])
    pixels = [(t, m) for t, m in zip(told.ravel(), masks.ravel(), strict=True) if m != 255]
    expected = {}
    for one in range(3):
        both = sum(t == m == one for t, m in pixels)
        expected[str(10 + one)] = both / sum(t == one or m == one for t, m in pixels)
    assert {name: told["iou"] for name, told in found["classes"]["encoder"].items()} == pytest.approx(expected)
    assert found["miou"] == pytest.approx(np.mean(list(expected.values())))
    assert found["pixel_accuracy"] == pytest.approx(np.mean([t == m for t, m in pixels]))
    again = np.random.default_rng(1).integers(0, 5, (2000, 5))
    drawn = [figures_of(counts[torch.tensor(rows)]) for rows in again]
    assert found["errors"]["miou"] == pytest.approx(np.std(drawn), rel=0.15)


def figures_of(counts: torch.Tensor) -> float:
    right, told, asked = counts.sum(0).double()
    union = told + asked - right
    return (right / union)[union > 0].mean().item()


def test_windows_cover_an_image_and_their_scores_are_averaged():
    assert window_starts(10, 4, 3) == [0, 3, 6] and window_starts(11, 4, 3) == [0, 3, 6, 7]
    assert window_starts(4, 4, 3) == [0]
    image = torch.randn(3, 4, 11)
    assert torch.allclose(slide(lambda windows: windows * 2, image, 4, 3), image * 2)
    scores = torch.randn(40, 5, 6)
    whole = torch.nn.functional.interpolate(scores[None], (11, 13), mode="bilinear", align_corners=False)[0]
    assert winner(scores, (11, 13)).equal(whole.argmax(0))


def test_pixels_of_a_patch_stay_together():
    image = torch.arange(3 * 8 * 8.0).view(1, 3, 8, 8)
    found = patch_pixels((2, 4))(image)
    assert found.shape == (1, 3 * 4 * 2, 2, 4)
    assert found[0, :, 1, 2].tolist() == image[0, :, 4:8, 4:6].flatten().tolist()


def test_a_probe_learns_masks_and_stands_beside_pixels_and_an_untrained_network(encoder, masks, tmp_path):
    found = probe(encoder, masks, tmp_path, replace(SETTINGS, steps=40, size=128, scales=(1, 1)), baselines=True)
    assert (found["bank"], found["queries"], found["measured"]["num_classes"]) == (8, 4, 2)
    assert found["baselines"]["raw pixels"]["miou"] > 0.65, "a bright box is told by its pixels"
    assert set(found["baselines"]) == {"raw pixels", "untrained SimSiamModel"}
    assert set(found["classes"]["encoder"]) == {"1", "3"} and found["errors"]["miou"] >= 0


def test_an_ignored_label_counts_nowhere(encoder, masks, tmp_path):
    with pytest.raises(RecipeError, match="fewer than two classes"):
        probe(encoder, masks, tmp_path, ignored=(3,))


class _Killed(Exception):
    pass


def test_an_interrupted_probe_ends_where_it_would_have_ended(encoder, masks, tmp_path, monkeypatch):
    whole = probe(encoder, masks, tmp_path / "whole")
    steps, real = [], module.rate

    def dying(settings, step, *more):
        steps.append(step)
        if len(steps) == 8:
            raise _Killed
        return real(settings, step, *more)

    monkeypatch.setattr(module, "rate", dying)
    with pytest.raises(_Killed):
        probe(encoder, masks, tmp_path / "again")
    again = probe(encoder, masks, tmp_path / "again")
    assert steps[8] == 6 and (again["miou"], again["errors"]) == (whole["miou"], whole["errors"])


def learn(encoder: str, masks: str, folder: str) -> None:
    kept, real = {}, module._train
    with pytest.MonkeyPatch.context() as patch:

        def watched(one, *more):
            failed = real(one, *more)
            kept["weight"] = one.head.linear.weight.detach().clone()
            kept["mean"] = one.head.norm.running_mean.clone()
            return failed

        patch.setattr(module, "_train", watched)
        kept["miou"] = probe(encoder, masks, Path(folder))["miou"]
    torch.save(kept, Path(folder) / f"{os.environ.get('RANK', 0)}.pt")


def test_two_processes_learn_what_one_does(encoder, masks, tmp_path):
    learn(encoder, str(masks), str(tmp_path / "one"))
    run = start(learn, encoder, str(masks), str(tmp_path / "two"), processes=2, log=tmp_path / "log")
    assert run.wait(timeout=240) == 0, (tmp_path / "log").read_text()[-3000:]
    alone, *both = (torch.load(tmp_path / file) for file in ("one/0.pt", "two/0.pt", "two/1.pt"))
    for one in both:
        for name in ("weight", "mean"):
            assert torch.allclose(one[name], alone[name], atol=1e-4), name
        assert one["miou"] == pytest.approx(alone["miou"], abs=0.02)


def test_the_command_keeps_what_it_measured_of_a_dataset(encoder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kinds = Features({"photo": ImageFeature(), "mask": ImageFeature()})
    for split, numbers in (("train", range(8)), ("test", range(8, 12))):
        photos, masks = zip(*map(picture, numbers), strict=True)
        palette = [mask.convert("P") for mask in masks]
        for mask, plain in zip(palette, masks, strict=True):
            mask.putdata(list(plain.getdata()))
            mask.putpalette([255, 0, 0] * 256)
        rows = {"photo": list(photos), "mask": palette}
        Dataset.from_dict(rows, features=kinds).to_parquet(tmp_path / "data" / f"{split}.parquet")
    command = ["evaluate", "dense", encoder, "--data", "data", "--num-workers", "0", "--epochs", "2"]
    main([*command, "--train-batch-size", "4", "--no-baselines", "--output", "r.json"])
    shown, result = capsys.readouterr().out, json.loads(Path("r.json").read_text())
    assert f"{result['miou']:.2%}" in shown and "2 epochs, batch 4" in shown
    assert set(result["classes"]["encoder"]) == {"1", "3"}, "a palette's indices, not its colors"


def test_a_part_is_held_out_where_there_is_one_split(tmp_path):
    for i in range(10):
        for kind, image in zip(("images", "annotations"), picture(i), strict=True):
            (tmp_path / kind / "training").mkdir(parents=True, exist_ok=True)
            image.save(tmp_path / kind / "training" / f"{i}.png")
    bank, queries = masked_sources(DataConfig(path=str(tmp_path)), MonitorConfig())
    names = [{Path(side.name(i)).stem for i in range(len(side))} for side in (bank, queries)]
    assert (len(bank), len(queries), queries.part) == (8, 2, "20 % of train") and not names[0] & names[1]
    record = bank.record(0)
    assert Path(record["image"]["path"]).stem == Path(record["mask"]["path"]).stem


def broken(folder: Path, how: str) -> None:
    file = folder / "train/masks/0.png"
    mask = Image.open(file)
    if how == "size":
        mask.resize((20, 20)).save(file)
    elif how == "colors":
        mask.convert("RGB").save(file)
    elif how == "numbers":
        Image.fromarray(np.full((40, 48), 300, np.uint16)).save(file)
    elif how == "missing":
        file.unlink()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("size", r"0\.png cannot be used: it has 20 x 20 pixels, but its image has 48 x 40"),
        ("colors", r"0\.png cannot be used: it contains colors \(RGB\)"),
        ("numbers", "it contains numbers from 300 to 300"),
        ("missing", r"1 file\(s\) of .* have no mask of the same name, such as .*0\.png"),
    ],
)
def test_a_mask_that_is_none_is_named(encoder, tmp_path, how, said):
    broken(write(tmp_path / "data"), how)
    with pytest.raises(RecipeError, match=said):
        probe(encoder, tmp_path / "data", tmp_path / "run")


def test_a_broken_image_is_named_and_not_counted(encoder, tmp_path):
    folder = write(tmp_path / "data", 15)
    (folder / "test/images/14.png").write_bytes(b"nothing")
    whole = folder / "train/images/0.png"
    whole.write_bytes(whole.read_bytes()[:-60])  # its header can be read
    found = probe(encoder, folder, tmp_path / "run")
    named = [Path(name.split(" (")[0]).name for name in found["failed"]]
    assert found["queries"] == 4 and named == ["14.png", "0.png"]


def test_tokens_are_put_in_their_places_and_others_refused(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    made = {
        "vit": ViTModel(ViTConfig(**sizes, image_size=32, patch_size=8)),
        "swin": SwinModel(SwinConfig(image_size=32, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4)),
    }
    for name, model in made.items():
        model.save_pretrained(tmp_path / name)
        ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / name)
    images = torch.randn(2, 3, 32, 32)
    opened = open_model(str(tmp_path / "vit"))
    with torch.no_grad():
        tokens = opened.model(pixel_values=images).last_hidden_state
        assert feature_map(opened)(images)[:, :, 2, 1].equal(tokens[:, 1 + 2 * 4 + 1])
        with pytest.raises(
            RecipeError, match="SwinModel.* is neither a feature map nor a square grid of patch tokens"
        ):
            feature_map(open_model(str(tmp_path / "swin"), pooler=False))(images)
