# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""ROxford and RParis: the published figures from a ground truth, which is read and never executed."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_ssl.cli import main
from hf_ssl.evaluation.revisited import precisions, read_ground_truth, revisited_sources
from hf_ssl.recipe import DataConfig, MonitorConfig, RecipeError
from tests.conftest import digit_images
from tests.methods import save_encoder


def published(ranking: list[int], right: set[int], junk: set[int]) -> list[float]:
    """compute_map and compute_ap of the authors, one image after the other."""
    places, place = [], 0
    for image in ranking:
        if image in junk:
            continue
        if image in right:
            places.append(place)
        place += 1
    average = 0.0
    for number, rank in enumerate(places):
        before = 1.0 if rank == 0 else number / rank
        average += (before + (number + 1) / (rank + 1)) / (2 * len(right))
    found = [average]
    for k in (1, 5, 10):
        depth = min(max(places) + 1, k)
        found.append(sum(rank + 1 <= depth for rank in places) / depth)
    return found


def test_precisions_are_the_published_ones():
    for seed in range(20):
        chance = np.random.default_rng(seed)
        images = chance.permutation(30)
        right, junk = images[: chance.integers(1, 8)], images[10 : 10 + chance.integers(0, 9)]
        ranking = chance.permutation(30)
        found = precisions(*map(torch.tensor, (ranking, right, junk)))
        assert found == pytest.approx(published(ranking.tolist(), set(right.tolist()), set(junk.tolist())))


@pytest.fixture(scope="module")
def buildings(tmp_path_factory) -> tuple[Path, Path]:
    """A folder of 24 images and 3 queries, and a ground truth of numpy's arrays, as the authors' is."""
    folder = tmp_path_factory.mktemp("buildings")
    images, digits = digit_images(27)
    names = [f"all_souls_{i:06}" for i in range(27)]
    (folder / "jpg").mkdir()
    for name, image in zip(names, images, strict=True):
        image.save(folder / "jpg" / f"{name}.jpg")
    truth = []
    for query in (24, 25, 26):
        same = [i for i in range(24) if digits[i] == digits[query]]
        other = [i for i in range(24) if digits[i] == (digits[query] + 1) % 10]
        numbers = {"easy": same[:1], "hard": same[1:] if query != 25 else [], "junk": other}
        truth.append({"bbx": [2.4, 1.0, 30.0, 28.6]} | {key: np.array(one) for key, one in numbers.items()})
    content = {"imlist": names[:24], "qimlist": names[24:], "gnd": truth}
    file = folder / "gnd.pkl"
    file.write_bytes(pickle.dumps(content, protocol=2))
    return folder, file


def test_queries_are_cut_and_found_among_the_images(buildings, tmp_path):
    folder, file = buildings
    where = DataConfig(path=str(folder / "jpg"))
    sources, _ = revisited_sources(str(file), where, MonitorConfig())
    assert (len(sources["bank"]), len(sources["queries"])) == (24, 3)
    assert sources["queries"].image(0).size == (28, 28) and sources["bank"].image(0).size == (32, 32)
    encoder = save_encoder(tmp_path / "encoder")
    command = ["evaluate", "retrieval", encoder, "--data", str(folder / "jpg"), "--ground-truth", str(file)]
    main([*command, "--num-workers", "0"])
    [kept] = (tmp_path / "encoder/results").glob("retrieval-revisited_*.json")
    result = json.loads(kept.read_text())
    assert 0 < result["map_medium"] <= 1 and result["errors"]["map_hard"] >= 0 and "mp10_easy" in result
    assert result["baselines"]["raw pixels"]["map_easy"] > 0 and (result["bank"], result["queries"]) == (24, 3)


def test_cut_queries_are_not_taken_for_whole_ones(buildings, tmp_path):
    """Features are kept by the files that they are of."""
    from hf_ssl.evaluation.encoders import open_model
    from hf_ssl.evaluation.store import features_of

    folder, file = buildings
    sources, _ = revisited_sources(str(file), DataConfig(path=str(folder / "jpg")), MonitorConfig())
    encoder, cut = open_model(save_encoder(tmp_path / "encoder")), sources["queries"]
    found = features_of(encoder, cut, cache=tmp_path / "c")[""].vectors.clone()
    cut.boxes = [(0, 0, 10, 10)] * 3
    assert not features_of(encoder, cut, cache=tmp_path / "c")[""].vectors.equal(found)


class Evil:
    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"imlist": Evil()}, r"asks for posix\.system, which no such ground truth needs"),
        ({"imlist": ["a"], "qimlist": ["b"]}, "is not a ground truth file of ROxford or RParis"),
        ({"imlist": ["a"], "qimlist": ["b"], "gnd": []}, "it has 1 queries, but ground truth for 0"),
        (
            {"imlist": ["a"], "qimlist": ["b"], "gnd": [{"easy": [7], "hard": [], "junk": [], "bbx": [0, 0, 1, 1]}]},
            "it refers to images outside its list",
        ),
    ],
)
def test_a_file_that_is_no_ground_truth_is_refused(tmp_path, monkeypatch, content, said):
    monkeypatch.chdir(tmp_path)
    Path("gnd.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(RecipeError, match=said):
        read_ground_truth("gnd.pkl")
    assert not Path("executed").exists()


def test_images_that_are_missing_are_named(buildings, tmp_path):
    folder, file = buildings
    (tmp_path / "some").mkdir()
    for image in sorted((folder / "jpg").iterdir())[:-2]:
        (tmp_path / "some" / image.name).write_bytes(image.read_bytes())
    with pytest.raises(RecipeError, match=r"2 of the 27 images of .* are not in .*all_souls_000025"):
        revisited_sources(str(file), DataConfig(path=str(tmp_path / "some")), MonitorConfig())
