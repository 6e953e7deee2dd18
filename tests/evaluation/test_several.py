# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Several labels an example: the figures of VISSL's SVMs, computed anew with scikit-learn as VISSL calls it."""

import json

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.svm import LinearSVC

from hf_ssl import SimSiamConfig, SimSiamModel
from hf_ssl.cli import main
from hf_ssl.data.labels import find_label_column, several_classes, targets_of
from hf_ssl.evaluation.features import Features as Vectors
from hf_ssl.evaluation.protocols import PROTOCOLS
from hf_ssl.evaluation.several import average_precision, several_svms, stratified_folds
from hf_ssl.hub.evaluations import entries
from hf_ssl.recipe import RecipeError
from tests.conftest import digit_images


NAMES = ["even", "large", "square"]


def several(digit: int) -> list[int]:
    return [i for i, here in enumerate((digit % 2 == 0, digit > 6, digit in (1, 4, 9))) if here]


def digit_vectors(start: int, stop: int, ignored: bool = False) -> Vectors:
    digits = load_digits()
    targets = torch.tensor([[int(k in several(d)) for k in range(3)] for d in digits.target[start:stop]])
    if ignored:
        chance = torch.rand(targets.shape, generator=torch.Generator().manual_seed(1))
        targets = targets.where(chance > 0.1, -1)
    noise = torch.randn(stop - start, 64, generator=torch.Generator().manual_seed(start)) * 6  # else it is too easy
    return Vectors(torch.tensor(digits.data[start:stop], dtype=torch.float32) + noise, targets, [])


def published_ap(right: np.ndarray, scores: np.ndarray) -> float:
    """VISSL's `get_precision_recall` and `calculate_ap`."""
    hits = right[np.argsort(scores)[::-1]].astype(float)
    precision, recall = np.cumsum(hits) / np.arange(1, len(hits) + 1), np.cumsum(hits) / hits.sum()
    recall, precision = np.concatenate([[0], recall, [1]]), np.concatenate([[0], precision, [0]])
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    changes = np.where(recall[1:] != recall[:-1])[0] + 1
    return float(((recall[changes] - recall[changes - 1]) * precision[changes]).sum())


def test_average_precision_is_scikit_learns_and_under_the_envelope_vissls():
    for seed in range(5):
        chance = np.random.default_rng(seed)
        right, scores = chance.random(80) < 0.3, chance.standard_normal(80)
        both = torch.from_numpy(scores), torch.from_numpy(right)
        assert average_precision(*both, envelope=False) == pytest.approx(average_precision_score(right, scores))
        assert average_precision(*both, envelope=True) == pytest.approx(published_ap(right, scores))


def test_folds_are_scikit_learns():
    for seed in range(5):
        labels = (np.random.default_rng(seed).random(50 + seed) < 0.2).astype(int)
        folds = stratified_folds(torch.from_numpy(labels)).numpy()
        for number, (_, held_out) in enumerate(StratifiedKFold(3).split(labels, labels)):
            assert np.flatnonzero(folds == number).tolist() == held_out.tolist()


def published(train: Vectors, test: Vectors, costs: tuple[float, ...]) -> tuple[list[float], list[float]]:
    """Average precisions and costs of the classes as `SVMTrainer` of VISSL finds them, converged."""
    x, y = (side.vectors.double().numpy() for side in (train, test))
    x, y = (one / (np.linalg.norm(one, axis=1) + 1e-5)[:, None] for one in (x, y))
    precisions, chosen = [], []
    for k in range(train.labels.shape[1]):
        labels = train.labels[:, k].numpy().copy()
        labels[labels == 0] = -1
        how = {"class_weight": {1: 2, -1: 1}, "dual": False, "tol": 1e-10, "max_iter": 10000}
        machines = [LinearSVC(C=c, **how) for c in costs]
        found = [cross_val_score(one, x, labels, cv=3, scoring="average_precision").mean() for one in machines]
        best = int(np.argmax(found))
        scores = machines[best].fit(x, labels).decision_function(y)
        counts = test.labels[:, k].numpy() != -1
        precisions.append(published_ap(test.labels[:, k].numpy()[counts] == 1, scores[counts]))
        chosen.append(costs[best])
    return precisions, chosen


def test_the_figures_are_those_of_vissls_trainer():
    train, test = digit_vectors(0, 400, ignored=True), digit_vectors(400, 700, ignored=True)
    costs = PROTOCOLS["linear"]["voc07"].costs
    value, of_class, error = several_svms(train, test, costs=costs)
    precisions, chosen = published(train, test, costs)
    assert 0.5 < value < 0.999 and 0.001 < error < 0.05
    assert [one["ap"] for one in of_class] == pytest.approx(precisions, abs=1e-6)
    assert [one["C"] for one in of_class] == pytest.approx(chosen)
    assert value == pytest.approx(np.mean(precisions), abs=1e-6)


def test_lists_of_names_numbers_and_class_labels_become_targets():
    rows = {"tags": [["b", "a"], [], None, ["c", ""]], "ignored": [["c"], ["a"], None, ["c"]], "label": [0, 1, 2, 3]}
    kinds = {"tags": List(Value("string")), "ignored": List(Value("string")), "label": Value("int64")}
    texts = Dataset.from_dict(rows, features=Features(kinds))
    present, ignored = several_classes(texts, None, "it")
    assert present == [["b", "a"], [], None, ["c"]] and ignored == [["c"], ["a"], [], ["c"]]
    expected = [[1, 1, -1], [-1, 0, 0], [-1, -1, -1], [0, 0, 1]]
    assert targets_of(present, ignored, ["a", "b", "c"]).tolist() == expected
    assert find_label_column(texts.features, None) == "label"  # what has one class an example is found as before
    named = Features({"labels": List(ClassLabel(names=NAMES))})
    numbers = Dataset.from_dict({"labels": [[1, 0], [-1]]}, features=named)
    assert several_classes(numbers, "labels", "it")[0] == [["large", "even"], []]
    two = texts.add_column("others", [[1], [2], [3], [4]])
    with pytest.raises(RecipeError, match=r"several columns of lists of labels \(tags, others\); set --label-column"):
        several_classes(two, None, "it")
    with pytest.raises(RecipeError, match="'label' of it does not hold lists of class numbers or names"):
        several_classes(texts, "label", "it")
    with pytest.raises(RecipeError, match="has no lists of labels"):
        several_classes(texts.remove_columns(["tags", "ignored"]), None, "it")


@pytest.fixture(scope="module")
def tagged(tmp_path_factory):
    """A folder with train.parquet and test.parquet."""
    folder = tmp_path_factory.mktemp("tagged")
    images, digits = digit_images(192)
    kinds = Features({"image": Image(), "labels": List(ClassLabel(names=NAMES))})
    for name, part in (("train", slice(0, 128)), ("test", slice(128, 192))):
        rows = {"image": images[part], "labels": [several(digit) for digit in digits[part]]}
        Dataset.from_dict(rows, features=kinds).to_parquet(folder / f"{name}.parquet")
    return folder


def test_the_command_tells_the_mean_and_each_class(tagged, tmp_path, capsys):
    torch.manual_seed(0)
    SimSiamModel(SimSiamConfig(backbone="test_resnet", image_size=32)).save_pretrained(tmp_path / "encoder")
    command = ["evaluate", "linear", str(tmp_path / "encoder"), "--data", str(tagged), "--num-workers", "0"]
    main([*command, "--protocol", "voc07", "--no-baselines"])
    told = capsys.readouterr().out
    [file] = (tmp_path / "encoder/results").glob("linear-voc07_*.json")
    result = json.loads(file.read_text())
    assert f"{result['map']:.2%}" in told and "chosen by 3 folds" in told
    assert list(result["classes"]["encoder"]) == NAMES and result["measured"]["num_classes"] == 3
    assert result["map"] == pytest.approx(np.mean([one["ap"] for one in result["classes"]["encoder"].values()]))
    assert 0.2 < result["map"] <= 1 and (result["bank"], result["queries"]) == (128, 64)


def test_a_class_that_a_split_lacks_is_named(tagged, tmp_path, capsys):
    torch.manual_seed(0)
    SimSiamModel(SimSiamConfig(backbone="test_resnet", image_size=32)).save_pretrained(tmp_path / "encoder")
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "test"):
        part = Dataset.from_parquet(str(tagged / f"{split}.parquet"))
        if split == "test":
            part = part.filter(lambda row: 2 not in row["labels"])
        part.to_parquet(folder / f"{split}.parquet")
    command = ["evaluate", "linear", str(tmp_path / "encoder"), "--data", str(folder), "--num-workers", "0"]
    with pytest.raises(SystemExit):
        main([*command, "--protocol", "voc07"])
    assert "The split 'test'" in (said := capsys.readouterr().err) and "has no example of square" in said


def test_the_card_calls_it_by_its_name():
    about = {"protocol": "linear", "said": "SVMs", "data": "voc", "errors": {}, "measured": {"queries": "test"}}
    [entry] = entries([{**about, "map": 0.5}])
    assert (entry.metric_type, entry.metric_value) == ("mean_average_precision", 50)
