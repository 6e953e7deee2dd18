# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""What `hf-ssl data` says of a dataset is what training makes of it."""

import json

import numpy as np
import pytest
from PIL import Image

from hf_ssl.cli import main
from hf_ssl.data.loader import TrainLoader
from hf_ssl.data.sources import load_source
from hf_ssl.recipe import DataConfig, RecipeError
from hf_ssl.survey import survey
from hf_ssl.survey.findings import text
from tests.conftest import digit_dataset, write_shards


def picture(path, seed: int, size: tuple[int, int] = (24, 16)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path):
    """Two splits with two classes: a copy, a copy in the other split, a broken file, and files that nobody reads."""
    root = tmp_path / "photos"
    for i, name in enumerate(("train/cat/0.png", "train/cat/1.png", "train/dog/2.png", "test/cat/3.png")):
        picture(root / name, seed=i, size=(24 << i, 16 << i))
    for copy, original in (("train/dog/c.png", "train/cat/0.png"), ("test/dog/c.png", "train/dog/2.png")):
        (root / copy).parent.mkdir(exist_ok=True)
        (root / copy).write_bytes((root / original).read_bytes())
    (root / "train/dog/broken.png").write_bytes(b"nothing")
    (root / "notes.txt").write_text("of the photographer")
    picture(root / "loose.png", seed=9)
    return root


def test_a_folder_is_told_by_name(folder, caplog):
    found = survey(DataConfig(path=str(folder), num_workers=0))
    assert found["splits"] == {
        "test": {"examples": 2, "read": 2, "classes": {"cat": 1, "dog": 1}},
        "train": {"examples": 5, "read": 5, "classes": {"dog": 3, "cat": 2}},
    }
    assert list(found["broken"]) == [str(folder / "train/dog/broken.png")]
    assert found["ignored"] == [str(folder / "loose.png"), str(folder / "notes.txt")]
    groups = sorted(sorted(group) for group in found["duplicates"])
    assert groups == [
        [str(folder / "test/dog/c.png"), str(folder / "train/dog/2.png")],
        [str(folder / "train/cat/0.png"), str(folder / "train/dog/c.png")],
    ]
    assert found["in_several_splits"] == 1 and not found["refused"]
    assert found["kinds"] == {"format": {"PNG": 6}, "mode": {"RGB": 6}, "pixels": {"8-bit": 6}}
    assert found["sides"]["smallest"] == 16 and found["sides"]["largest"] == 128
    assert found["sides"]["histogram"] == [[16, 32, 2], [32, 64, 1], [64, 128, 2], [128, 256, 1]]
    said = text(found)
    assert all(str(folder / name) in said for name in ("train/dog/broken.png", "loose.png", "test/dog/c.png"))


def test_what_is_broken_is_what_a_loader_passes_over(folder):
    from hf_ssl.data.images import ImageViews
    from hf_ssl.data.views import resolve_views
    from hf_ssl.recipe import ViewsConfig

    data = DataConfig(path=str(folder), num_workers=0)
    views = ImageViews(resolve_views(ViewsConfig(), "simsiam"))
    loader = TrainLoader(load_source(data), views, batch_size=5, num_steps=1)
    skipped = {name for batch in loader for name, _ in batch["skipped"]}
    assert skipped == {name for name in survey(data)["broken"] if "train" in name}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_shards_are_read_whole_or_to_a_limit(tmp_path, streaming, workers, no_waiting):
    write_shards(tmp_path)
    (tmp_path / "readme.md").write_text("digits")
    data = {"path": str(tmp_path), "num_workers": workers, "streaming": streaming}
    found = survey(DataConfig(**data))
    assert found["splits"]["train"]["examples"] == found["splits"]["train"]["read"] == found["read"] == 128
    assert found["ignored"] == [str(tmp_path / "readme.md")] and not found["broken"]
    assert survey(DataConfig(**data, max_examples=40))["read"] == 40


def test_deep_pixels_that_need_a_range_are_said_and_the_rest_is_told(tmp_path):
    for i in range(3):
        Image.fromarray(np.full((16, 16), 900 + i, np.uint16)).save(tmp_path / f"{i}.png")
    found = survey(DataConfig(path=str(tmp_path), num_workers=0))
    assert "data.value_range" in found["refused"][0] and "Training would stop" in text(found)
    assert found["splits"]["train"]["examples"] == 3
    found = survey(DataConfig(path=str(tmp_path), num_workers=0, value_range=(0, 1000)))
    assert found["kinds"]["pixels"] == {"16-bit": 3} and not found["refused"] and not found["broken"]


def test_videos_have_lengths_rates_and_sound(videos):
    found = survey(DataConfig(path=str(videos), num_workers=0, max_examples=2))
    assert found["kind"] == "video" and found["splits"]["train"]["examples"] == 24 and found["read"] == 4
    assert found["kinds"]["sound"] == {"16,000 Hz": 4} and not found["broken"]
    assert 0.9 < found["seconds_long"]["median"] < 1.2


def test_the_command_takes_keys_of_the_data_and_its_names_are_all_in_the_json(folder, capsys):
    for i in range(8):
        (folder / f"note{i}.txt").write_text("")
    main(["data", str(folder), "data.num_workers=0", "--json"])
    assert len(json.loads(capsys.readouterr().out)["ignored"]) == 10
    main(["data", str(folder), "data.num_workers=0", "data.split=test"])
    assert "and 5 more" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data.splt=x"], "data.split"),
        (["train.epochs=3"], "not a data key"),
        (["--max-examples", "0"], "--max-examples"),
    ],
)
def test_mistakes_of_the_command_are_one_sentence(folder, capsys, words, said):
    with pytest.raises(SystemExit) as stopped:
        main(["data", str(folder), *words])
    assert stopped.value.code == 2 and said in capsys.readouterr().err


def test_a_place_that_holds_nothing_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(RecipeError, match="contains no images .1 .txt."):
        survey(DataConfig(path=str(tmp_path)))


def test_a_python_path_of_one_file_is_read(tmp_path):
    digit_dataset(0, 4).to_parquet(tmp_path / "a.parquet")
    assert survey(DataConfig(path=str(tmp_path / "a.parquet"), num_workers=0))["read"] == 4
