# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Which labels are classes, and which examples are used for evaluation under which names."""

import json
import logging
from datetime import date

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from hf_ssl.data.bank import balanced_sample, held_out, labeled_sources, measured_on, paired, paired_by_hand
from hf_ssl.data.labels import is_split_name
from hf_ssl.recipe import DataConfig, MonitorConfig, RecipeError
from tests.data.test_sources import draw, folder_of_classes, said
from tests.sources import ImageSource


def labeled(values: list, feature=None, shades: list[int] | None = None) -> ImageSource:
    images = [Image.new("RGB", (4, 4), (i, i // 256, 7)) for i in shades or range(len(values))]
    feature = feature or Dataset.from_dict({"label": values}).features["label"]
    features = Features({"image": ImageFeature(), "label": feature})
    return ImageSource(Dataset.from_dict({"image": images, "label": values}, features=features))


def numbers(source: ImageSource) -> list[int]:
    return source.numbers.tolist()


@pytest.mark.parametrize(
    ("values", "feature"),
    [
        ([20240101, 20240103, None, 20240101], None),
        ([10**10, 10**18, -1, 10**10], None),
        ([-(2**62), 5, -1, -(2**62)], None),
        ([0, 7, None, 0], Value("uint64")),
        (["cat", "dog", "", "cat"], None),
        ([1.0, 7.0, float("nan"), 1.0], None),
        ([False, True, None, False], None),
        ([0, 1, -1, 0], ClassLabel(names=["a", "b"])),
    ],
)
def test_classes_of_any_kind_are_numbered_from_0_and_rows_without_one_have_none(values, feature):
    assert numbers(labeled(values, feature)) == [0, 1, -1, 0]


def test_bank_and_queries_agree_on_classes_by_name():
    bank = labeled([0, 1, 1], ClassLabel(names=["cat", "dog"]))
    queries = labeled([0, 1, 2], ClassLabel(names=["dog", "cat", "bird"]), shades=[9, 10, 11])
    bank, queries = paired(bank, queries, MonitorConfig())
    assert numbers(bank) == [1, 2, 2] and numbers(queries) == [2, 1, 0]
    texts = labeled(["dog", "cat"], shades=[20, 21])
    assert numbers(paired(bank, texts, MonitorConfig())[1]) == [1, 0]
    with pytest.raises(RecipeError, match="different types of labels"):
        paired(bank, labeled([0, 1]), MonitorConfig())
    with pytest.raises(RecipeError, match="No class of"):
        paired(labeled([1, 2]), labeled([3, 4]), MonitorConfig())


def saved(folder, **splits: dict[str, list]) -> DataConfig:
    parts = {name: Dataset.from_dict(columns) for name, columns in splits.items()}
    DatasetDict(parts).save_to_disk(folder)
    return DataConfig(path=str(folder))


def columns(values: list) -> dict:
    records = [{"bytes": None, "path": f"{i}.png"} for i in range(len(values))]
    return {"image": records, "label": values}


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ([-1] * 6, "only -1 or null"),
        ([0.25, 0.5] * 3, "not classes"),
        ([[0, 1], [1]] * 3, "several labels per example"),
        ([{"class": 0}, {"class": 1}] * 3, "neither strings nor numbers"),
        ([date(2024, 1, 1), date(2025, 1, 1)] * 3, "neither strings nor numbers"),
        (["train", "val"] * 3, "split names"),
        (["a photo", "a dog", "x", "y", "z", "u"], "No class of train has two examples"),
    ],
)
def test_labels_that_tell_no_classes_are_none_and_that_is_said(values, why, tmp_path, caplog):
    data = saved(tmp_path / "set", train=columns(values))
    with caplog.at_level(logging.WARNING):
        assert labeled_sources(data, MonitorConfig()) == (None, None)
    assert why in caplog.text and len(caplog.records) == 1
    assert why in said(labeled_sources, DataConfig(), MonitorConfig(path=data.path))


@pytest.mark.parametrize("name", ["train", "val2017", "test_images", "Validation-Set", "fold 3", "trainset", "images"])
def test_a_name_of_a_split_is_no_class(name):
    assert is_split_name(name)


@pytest.mark.parametrize("name", ["cat", "training shoes", "validator", "2017", "trainspotting", ""])
def test_a_name_that_only_begins_like_a_split_is_a_class(name):
    assert not is_split_name(name)


def test_folders_of_splits_below_one_another_are_no_classes(tmp_path):
    for split in ("train", "val"):
        for i in range(3):
            draw(tmp_path / "images" / split / f"{i}.png", i)
    assert labeled_sources(DataConfig(path=str(tmp_path)), MonitorConfig()) == (None, None)


def test_a_sample_is_balanced_seeded_and_not_the_first():
    classes = np.repeat(np.arange(10), 100)
    chosen = balanced_sample(classes, 50)
    assert np.bincount(classes[chosen]).tolist() == [5] * 10
    assert chosen == balanced_sample(classes, 50) == sorted(set(chosen)) and chosen != balanced_sample(classes, 50, 1)
    assert max(np.array(chosen) % 100) > 50
    rare = np.array([0] * 90 + [1] * 3 + [-1] * 20)
    assert np.bincount(rare[balanced_sample(rare, 10)]).tolist() == [7, 3], "and none without a label"
    assert len(balanced_sample(classes, 7)) == 7 and len(set(classes[balanced_sample(classes, 7)])) == 7
    assert len(balanced_sample(rare, 1000)) == 93
    assert len(set(balanced_sample(np.full(40, -1), 10))) == 10


def test_limits_of_the_monitor_draw_from_all_classes(tmp_path):
    data = saved(tmp_path / "set", train=columns([i // 50 for i in range(200)]), test=columns([0, 1, 2, 3] * 10))
    bank, queries = labeled_sources(data, MonitorConfig(max_bank=20, max_queries=8))
    assert np.bincount(bank.numbers).tolist() == [5] * 4 and np.bincount(queries.numbers).tolist() == [2] * 4
    assert (bank.part, queries.part) == ("a class-balanced sample of train", "a class-balanced sample of test")


def test_20_percent_of_each_class_are_held_out_and_called_so(tmp_path):
    data = DataConfig(path=str(folder_of_classes(tmp_path, 10)))
    bank, queries = labeled_sources(data, MonitorConfig())
    assert np.bincount(bank.numbers).tolist() == [8, 8] and np.bincount(queries.numbers).tolist() == [2, 2]
    assert queries.part == "20 % of train, also seen in pretraining, without labels" and bank.part == "80 % of train"
    again = labeled_sources(data, MonitorConfig())[1]
    assert [again.name(i) for i in range(4)] == [queries.name(i) for i in range(4)]
    elsewhere = MonitorConfig(path=str(tmp_path))
    assert labeled_sources(DataConfig(), elsewhere)[1].part == "20 % of train"
    assert "partly seen" in labeled_sources(DataConfig(path=str(tmp_path), max_examples=3), MonitorConfig())[1].part


def test_a_rare_class_stays_in_the_bank_and_unlabeled_rows_in_neither():
    bank, queries = held_out(labeled([0] * 5 + [1, 1, 2, -1, None]))
    assert sorted(numbers(bank)) == [0, 0, 0, 0, 1, 2] and sorted(numbers(queries)) == [0, 1]


@pytest.mark.parametrize(
    ("others", "used"), [(["valid"], "valid"), (["dev", "eval"], "eval"), (["valid", "validation"], "validation")]
)
def test_queries_are_of_the_split_that_is_there_whatever_it_is_called(others, used, tmp_path):
    data = saved(tmp_path / "set", train=columns([0, 1] * 3), **{name: columns([0, 1] * 2) for name in others})
    bank, queries = labeled_sources(data, MonitorConfig())
    assert (bank.part, queries.part, len(queries)) == ("train", used, 4)


def test_validation_in_place_of_test_is_called_validation(tmp_path):
    data = saved(tmp_path / "set", train=columns([0, 1] * 3), validation=columns([0, 1]), test=columns([-1, -1]))
    assert labeled_sources(data, MonitorConfig())[1].part == "validation"
    some = saved(tmp_path / "some", train=columns([0, 1] * 3), test=columns([-1, 1, 0]))
    assert labeled_sources(some, MonitorConfig())[1].part == "test", "the first row alone does not tell"


def test_what_makes_an_accuracy_mean_less_is_said_in_a_sentence_each():
    def notes(bank, queries, k=1):
        found = measured_on(*paired(bank, queries, MonitorConfig()), k)
        assert json.loads(json.dumps(found)) == found
        return " ".join(found["notes"])

    bank, queries = labeled([0, 1] * 4), labeled([0, 1], shades=[50, 51])
    assert notes(bank, queries) == ""
    assert "k=20 exceeds the 8 examples" in notes(bank, queries, 20)
    assert "only one class" in notes(labeled([3] * 4), labeled([3], shades=[60]))
    assert "1 of 2 queries have classes that are not in the bank" in notes(bank, labeled([0, 7], shades=[50, 51]))
    assert "1 of 2 queries are also in the bank" in notes(bank, labeled([0, 1], shades=[1, 99]))


def test_the_same_file_in_bank_and_queries_is_found_by_its_path_and_by_its_content(tmp_path):
    folder_of_classes(tmp_path / "train")
    for label in ("cat", "dog"):
        draw(tmp_path / "test" / label / "other name.png", 2 if label == "cat" else 99)
    bank, queries = labeled_sources(DataConfig(path=str(tmp_path)), MonitorConfig())
    assert "1 of 2 queries" in measured_on(bank, queries, 1)["notes"][0]


def test_a_bank_from_python_needs_labels():
    with pytest.raises(RecipeError, match="only -1 or null"):
        paired_by_hand(labeled([0, 1]), labeled([-1, -1]), MonitorConfig())
