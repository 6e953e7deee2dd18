# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""kNN equals its definition, and the evaluation leaves the model and the random state alone."""

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from hf_ssl.evaluation.features import Features
from hf_ssl.evaluation.knn import knn_accuracy
from hf_ssl.evaluation.linear import linear_accuracy


def features(vectors, labels) -> Features:
    return Features(torch.as_tensor(vectors, dtype=torch.float32), torch.as_tensor(labels), [])


def digits_split():
    digits = load_digits()
    x, y = torch.tensor(digits.data, dtype=torch.float32), torch.tensor(digits.target)
    return features(x[:1200], y[:1200]), features(x[1200:], y[1200:])


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.1), (20, 0.1), (200, 0.07)])
def test_equals_scikit_learns_weighted_vote_on_cosine_distance(k, temperature):
    bank, queries = digits_split()
    reference = KNeighborsClassifier(
        n_neighbors=k, metric="cosine", algorithm="brute", weights=lambda d: np.exp(-d / temperature)
    )
    reference.fit(bank.vectors.numpy(), bank.labels.numpy())
    expected = reference.score(queries.vectors.numpy(), queries.labels.numpy())
    assert knn_accuracy(bank, queries, k=k, temperature=temperature) == pytest.approx(expected, abs=0.002)


def test_a_near_neighbor_outvotes_two_far_ones():
    bank = features([[1.0, 0.0], [0.6, 0.8], [0.6, -0.8]], [0, 1, 1])
    query = features([[1.0, 0.0]], [0])
    assert 2 * math.exp(0.6 / 0.1) < math.exp(1 / 0.1)
    assert knn_accuracy(bank, query, k=3, temperature=0.1) == 1.0
    assert knn_accuracy(bank, query, k=3, temperature=10.0) == 0.0


def test_chunks_do_not_change_the_result():
    bank, queries = digits_split()
    assert knn_accuracy(bank, queries, chunk=7) == knn_accuracy(bank, queries, chunk=4096)


def test_no_labeled_image_is_an_error():
    bank, queries = digits_split()
    with pytest.raises(ValueError, match="labeled"):
        knn_accuracy(bank, features(torch.zeros(0, 64), torch.zeros(0, dtype=torch.long)))


@pytest.mark.parametrize("ids", [[20240101, 20240102], [10**10, 10**18], [-(2**62), 7]])
def test_class_numbers_of_any_size_cost_no_memory(ids):
    bank = features([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]], [ids[0], ids[0], ids[1]])
    queries = features([[1.0, 0.1], [0.1, 1.0], [0.0, 1.0]], [ids[0], ids[1], ids[0]])
    assert knn_accuracy(bank, queries, k=1) == pytest.approx(2 / 3)
    assert linear_accuracy(bank, queries) == pytest.approx(2 / 3)


def test_unlabeled_images_neither_vote_nor_ask():
    bank = features([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], [0, -1, 1])
    queries = features([[0.0, 1.0], [0.0, 1.0]], [1, -1])
    assert knn_accuracy(bank, queries, k=1) == 1
