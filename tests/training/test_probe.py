# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""The online linear probe measures feature quality during training and does not influence the encoder."""

import io
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage
from safetensors.torch import load_file

from hf_ssl.data.bank import labeled_for_probe, part_held_out
from hf_ssl.data.images import LabeledViews
from hf_ssl.data.loader import TrainLoader
from hf_ssl.data.views import View
from hf_ssl.evaluation.features import Features as Vectors
from hf_ssl.evaluation.probe import OnlineProbe
from hf_ssl.recipe import MonitorConfig, RecipeError, load_recipe
from hf_ssl.training.metrics import read_metrics
from hf_ssl.training.pretrain import pretrain
from tests.conftest import digit_dataset
from tests.distributed import train_all_methods
from tests.runs import start
from tests.sources import ImageSource
from tests.training.test_pretrain import final_weights, small_recipe
from tests.training.test_resume import assert_same_weights, command, finished, started, stop_at


def probed(output: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["probe"]) for line in read_metrics(output / "metrics.jsonl") if "probe" in line]


def head(output: Path, step: int) -> dict[str, torch.Tensor]:
    [file] = (output / f"checkpoints/step_{step:08d}").glob("*rank*0.pt")
    return torch.load(file, weights_only=True)["monitor"]["probe"]["head"]


def test_weights_are_the_same_with_and_without_it_and_its_accuracy_stands_beside_knn(tmp_path, digits):
    data = {"path": str(digits)}
    with_probe = pretrain(small_recipe(tmp_path / "with", data=data, monitor={"probe": True}))
    without = pretrain(small_recipe(tmp_path / "without", data=data))
    a, b = final_weights(tmp_path / "with"), final_weights(tmp_path / "without")
    assert a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)
    assert 0 <= with_probe.final.pop("probe") <= 1
    same = ("loss", "knn", "embedding_std", "effective_rank")
    assert {key: with_probe.final[key] for key in same} == {key: without.final[key] for key in same}
    assert "probe" not in without.final and "probe" not in with_probe.baseline  # untrained then
    card = (with_probe.model_dir / "README.md").read_text()
    assert "| linear probe, trained online |  |" in card and "no gradient flows from it" in card
    assert "linear probe, trained" not in (without.model_dir / "README.md").read_text()


def test_it_learns_to_tell_classes():
    generator = torch.Generator().manual_seed(0)
    numbers = np.arange(200) % 5
    centers = torch.randn(5, 16, generator=generator)
    vectors = centers[torch.from_numpy(numbers)] + 0.3 * torch.randn(200, 16, generator=generator)
    probe, queries = OnlineProbe(numbers), Vectors(vectors, torch.from_numpy(numbers), [])
    assert probe.accuracy(queries) is None
    for _ in range(40):
        index = torch.randperm(200, generator=generator)[:64]
        probe.learn(vectors[index], index)
    assert probe.accuracy(queries) > 0.95


def test_examples_without_labels_teach_nothing():
    vectors, numbers = torch.randn(8, 4), np.array([0, 1, 0, 1, -1, -1, -1, -1])
    known, both = OnlineProbe(numbers), OnlineProbe(numbers)
    known.learn(vectors[:4], torch.arange(4))
    both.learn(vectors, torch.arange(8))
    for a, b in zip(known.state()["head"].values(), both.state()["head"].values(), strict=True):
        assert torch.allclose(a, b)


def test_killed_and_continued_it_gives_the_same_figures(digits, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    more = ("monitor.probe=true", "monitor.every=1")
    finished(command("simsiam", digits, whole, *more), whole)
    stop_at(started(command("simsiam", digits, broken, *more), broken), broken, 10, 0.02, signal.SIGKILL)
    finished(command("simsiam", digits, broken, *more), broken)
    assert len(probed(whole)) == 5 and probed(whole) == probed(broken)
    a, b = head(whole, 40), head(broken, 40)
    assert all(a[name].equal(b[name]) for name in a)
    assert_same_weights(whole / "model/model.safetensors", broken / "model/model.safetensors")


def trained(output: Path, processes: int) -> Path:
    output.mkdir(exist_ok=True)
    more = ("simsiam", "monitor.probe=true", "monitor.every=1", "train.steps=8", "train.keep=9")
    run = start(train_all_methods.main, str(output), *more, processes=processes, log=output / "log")
    assert run.wait(timeout=300) == 0, (output / "log").read_text()[-3000:]
    return output / "simsiam"


def test_two_processes_learn_the_probe_of_one_and_continue_with_it(tmp_path):
    one, two = trained(tmp_path / "one", 1), trained(tmp_path / "two", 2)
    a, b = head(one, 8), head(two, 8)
    assert a["weight"].abs().max() > 1e-3
    for name in a:
        assert torch.allclose(a[name], b[name], atol=1e-5), name
    assert probed(one) == probed(two)

    before = probed(two)
    shutil.rmtree(two / "checkpoints/step_00000008")
    shutil.rmtree(two / "model")
    trained(tmp_path / "two", 2)
    assert " 4/8 " in (tmp_path / "two/log").read_text().replace("[", " ")  # the second progress bar begins here
    assert probed(two) == before
    again = head(two, 8)
    assert all(again[name].equal(b[name]) for name in b)


def test_other_labels_than_it_has_learned_begin_anew(caplog):
    probe = OnlineProbe(np.array([0, 1, 2]))
    probe.learn(torch.randn(3, 4), torch.arange(3))
    other, same = OnlineProbe(np.array([0, 2, 1])), OnlineProbe(np.array([0, 1, 2]))
    other.restore(probe.state())
    same.restore(probe.state())
    assert other.state() == {} and "restarts" in caplog.text
    assert same.state()["head"]["weight"].equal(probe.state()["head"]["weight"])


def test_images_that_stand_in_for_others_keep_their_own_labels():
    images = [{"bytes": b"broken", "path": None} if i % 3 == 0 else _png(i) for i in range(48)]
    features = Features({"image": Image(), "label": ClassLabel(num_classes=48)})
    source = ImageSource(Dataset.from_dict({"image": images, "label": list(range(48))}, features=features))
    views = LabeledViews([View(size=8, jitter_prob=0, grayscale=0, blur=0, scale=(1, 1), flip=0)])
    loader = TrainLoader(source, views, batch_size=16, num_steps=3, max_failed_share=1)
    for batch in loader:
        assert batch["skipped"]
        shown = batch["views"][0, :, 4, 4, 0].int()
        assert (shown == 5 * batch["index"]).all()


def _png(number: int) -> dict:
    file = io.BytesIO()
    PILImage.new("RGB", (8, 8), (5 * number,) * 3).save(file, "png")
    return {"bytes": file.getvalue(), "path": None}


def test_what_is_held_out_as_queries_is_not_learned_from():
    source = ImageSource(digit_dataset(0, 100))
    bank, queries = part_held_out(ImageSource(digit_dataset(0, 100)), MonitorConfig())
    taught, bank, queries = labeled_for_probe(source, bank, queries, same_rows=True)
    assert sorted([*bank.rows, *queries.rows]) == list(range(100))
    assert (taught.numbers[queries.rows] == -1).all() and (taught.numbers[bank.rows] >= 0).all()
    with pytest.raises(RecipeError, match="needs queries outside the training data; set monitor.path"):
        labeled_for_probe(source, bank, queries, same_rows=False)


def test_data_without_labels_are_refused_in_one_sentence(tmp_path, digits, videos):
    unlabeled = digit_dataset(0, 64).remove_columns("label")
    recipe = small_recipe(tmp_path / "run", monitor={"probe": True})
    with pytest.raises(RecipeError, match="monitor.probe needs labels for the training images"):
        pretrain(recipe, dataset=unlabeled, bank=digit_dataset(0, 64), queries=digit_dataset(64, 96))
    secret = unlabeled.add_column("label", [-1] * 64, feature=Value("int64"))
    with pytest.raises(RecipeError, match="has no labels, only -1 or null"):
        pretrain(recipe, dataset=secret, bank=digit_dataset(0, 64), queries=digit_dataset(64, 96))
    streamed = small_recipe(tmp_path / "run", data={"path": str(digits), "streaming": True}, monitor={"probe": True})
    with pytest.raises(RecipeError, match="monitor.probe needs labeled images that are not streamed"):
        pretrain(streamed)
    clips = tmp_path / "clips.yaml"
    clips.write_text("method: avid\n")
    asked = load_recipe(clips, [*command("avid", videos, tmp_path / "avid")[2:], "monitor.probe=true"])
    with pytest.raises(RecipeError, match="monitor.probe needs labeled images that are not streamed"):
        pretrain(asked)
    all_of_them = {"path": str(digits)}, {"probe": True, "query_split": "train"}
    with pytest.raises(RecipeError, match="are also queries of the probe; set monitor.query_split"):
        pretrain(small_recipe(tmp_path / "run", data=all_of_them[0], monitor=all_of_them[1]))


def test_a_column_of_labels_that_is_named_for_the_monitor_is_learned_from(tmp_path, digits):
    data = {side: Dataset.from_parquet(str(digits / f"{side}.parquet")) for side in ("train", "test")}
    for side, part in data.items():
        part = part.rename_column("label", "kind").add_column("label", ["x"] * len(part))
        part.to_parquet(tmp_path / f"{side}.parquet")
    monitor = {"probe": True, "label_column": "kind"}
    pretrain(small_recipe(tmp_path / "run", data={"path": str(tmp_path)}, monitor=monitor))
    assert len(head(tmp_path / "run", 6)["bias"]) == 10
    assert load_file(tmp_path / "run/model/model.safetensors")
