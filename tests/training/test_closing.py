# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""The final messages of a run, and what is sent to trackers."""

import re

import pytest
from accelerate import Accelerator
from PIL import Image

from hf_ssl.cli.closing import closing
from hf_ssl.training.metrics import MetricsLogger, RunTotals, tracker_settings
from hf_ssl.training.pretrain import pretrain
from tests.conftest import digit_dataset
from tests.methods import few_steps
from tests.training.test_pretrain import small_recipe


SMALL_HEADS = ("model.projector_dim=16", "model.predictor_hidden=8")


@pytest.mark.parametrize("stem", ["imagenet", "small"])
def test_the_closing_lines_load_the_model_as_they_stand(tmp_path, monkeypatch, stem):
    monkeypatch.chdir(tmp_path)
    recipe = small_recipe(tmp_path / "run", model={"stem": stem})
    result = pretrain(recipe, dataset=digit_dataset(0, 64))
    text = "\n".join(closing(result, 20, "untrained"))
    assert "Trained on 64 images; all files could be read" in text
    assert re.search(r"\d images/s, \d+% of the time waiting for data; peak memory \d", text)
    Image.new("RGB", (40, 40), (200, 30, 30)).save("image.jpg")
    found: dict = {}
    exec("\n".join(result.usage), found)
    assert len(found["features"][0]) > 0
    assert type(found["encoder"]).__module__.startswith("timm" if stem == "imagenet" else "hf_ssl")
    again = pretrain(recipe, dataset=digit_dataset(0, 64))
    assert again.usage == result.usage and not again.summary


def test_ignored_files_of_the_folder_are_counted(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(16):
        Image.new("RGB", (40, 40), (number * 10, 30, 30)).save(photos / f"{number}.png")
    for other in ("notes.txt", "Thumbs.db"):
        (photos / other).write_text("no image")
    result = pretrain(few_steps("simsiam", tmp_path / "run", f"data.path={photos}", *SMALL_HEADS))
    (tmp_path / "run" / "trackio").mkdir()  # as trackio does
    text = "\n".join(closing(result, 20, "untrained"))
    assert f"TRACKIO_DIR={tmp_path / 'run' / 'trackio'} trackio show" in text
    assert "all files could be read; 2 other file(s) were ignored" in text
    assert f"hf-ssl evaluate knn {tmp_path / 'run'} --data LABELED" in text


def test_the_monitor_names_an_unreadable_file_once(tmp_path, caplog):
    photos = tmp_path / "photos"
    for color in range(2):
        (photos / str(color)).mkdir(parents=True)
        for number in range(10):
            Image.new("RGB", (40, 40), (number * 10, 200 * color, 30)).save(photos / str(color) / f"{number}.png")
    (photos / "0" / "broken.png").write_bytes(b"no image")
    pretrain(few_steps("simsiam", tmp_path / "run", f"data.path={photos}", "monitor.every=1", *SMALL_HEADS))
    assert caplog.text.count("could not be read for the monitor") == 1


def test_files_that_could_not_be_read_are_in_the_summary_also_after_a_restart():
    totals = RunTotals(Accelerator(cpu=True))
    totals.add_time(10.0, 0.25)
    totals.add_skipped([("a.jpg", "cut off"), ("a.jpg", "cut off")])
    totals.synchronize()
    summary = RunTotals(totals.accelerator, **totals.to_dict()).summary(500, "images")
    assert (summary["skipped"], summary["skipped_files"]) == (2, 1)
    assert summary["per_second"] == 50 and summary["data_wait"] == 0.25


def test_a_run_is_one_run_of_a_tracker_across_restarts(tmp_path, monkeypatch):
    monkeypatch.delenv("TRACKIO_DIR", raising=False)
    folder = tmp_path / "mine"
    folder.mkdir()
    first, again = tracker_settings(folder, None, True), tracker_settings(folder, 40, True)
    assert first["wandb"] == again["wandb"] and first["trackio"] == again["trackio"]
    assert first["wandb"]["name"] == "mine" and first["wandb"]["dir"] == str(folder)
    assert again["tensorboard"] == {"purge_step": 41}, "what is written again replaces what was written"
    assert tracker_settings(folder, None, True)["wandb"]["id"] != first["wandb"]["id"], "a new run is another one"
    monkeypatch.delenv("TRACKIO_DIR", raising=False)


def test_a_collapse_is_an_alert_of_the_trackers_that_have_such(tmp_path, monkeypatch):
    told = []

    class Wandb:
        name = "wandb"
        tracker = property(lambda self: self)

        def alert(self, **words):
            told.append(words)

    accelerator = Accelerator(cpu=True)
    metrics = MetricsLogger(small_recipe(tmp_path), accelerator, 1)
    accelerator.trackers.append(Wandb())
    metrics.alert("collapsed", "all the same")
    assert told == [{"title": "collapsed", "text": "all the same", "level": "WARN"}]
