# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Linear classification equals scikit-learn's, averages a video's clips, and keeps test examples out of the fit."""

import logging

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from hf_ssl.evaluation.features import Features, clip_average
from hf_ssl.evaluation.linear import kfold_accuracy, linear_accuracy, linear_svm_accuracy


def features(vectors, labels) -> Features:
    return Features(torch.as_tensor(vectors, dtype=torch.float32), torch.as_tensor(labels), [])


def digits_split(num_train: int = 1200):
    digits = load_digits()
    x, y = digits.data, digits.target
    return features(x[:num_train], y[:num_train]), features(x[1200:], y[1200:])


def scikit_learn(model, train, test, eps: float = 0.0) -> float:
    scaler = StandardScaler().fit(train.vectors.numpy())
    scaler.scale_ += eps
    model.fit(scaler.transform(train.vectors.numpy()), train.labels.numpy())
    return model.score(scaler.transform(test.vectors.numpy()), test.labels.numpy())


def several_clips(of: Features, clips: int, noise: float) -> Features:
    generator = torch.Generator().manual_seed(clips)
    offsets = noise * torch.randn(len(of.labels), clips, of.vectors.shape[1], generator=generator)
    return features(of.vectors[:, None] + offsets, of.labels)


@pytest.mark.parametrize("weight_decay", [1e-4, 1e-2, 1])
def test_equals_scikit_learns_logistic_regression(weight_decay):
    train, test = digits_split()
    expected = scikit_learn(LogisticRegression(C=1 / (weight_decay * 1200), max_iter=5000, tol=1e-6), train, test)
    assert linear_accuracy(train, test, weight_decay=weight_decay) == pytest.approx(expected, abs=0.003)


@pytest.mark.parametrize(
    ("c", "loss", "within"), [(10, "squared_hinge", 0.002), (10, "hinge", 0.01), (1, "squared_hinge", 0.002)]
)
def test_equals_scikit_learns_linear_svm(c, loss, within):
    train, test = digits_split()
    reference = LinearSVC(C=c, loss=loss, max_iter=100_000, random_state=0)
    assert linear_svm_accuracy(train, test, c=c) == pytest.approx(
        scikit_learn(reference, train, test, 0.01), abs=within
    )


@pytest.mark.parametrize("accuracy", [linear_accuracy, linear_svm_accuracy])
def test_converges_and_is_deterministic_whatever_the_scale_of_the_features(accuracy, caplog):
    train, test = digits_split()
    state = torch.get_rng_state()
    with caplog.at_level(logging.WARNING), torch.no_grad():
        first = accuracy(train, test)
        assert accuracy(train, test) == first
    assert not caplog.records
    assert torch.equal(torch.get_rng_state(), state)
    shifted = [features(1000 * x.vectors + 500, x.labels) for x in (train, test)]
    assert accuracy(*shifted) == pytest.approx(first, abs=0.005)
    with caplog.at_level(logging.WARNING):
        accuracy(train, test, max_iter=3)
    assert "not converge" in caplog.text


@pytest.mark.parametrize("accuracy", [linear_accuracy, linear_svm_accuracy])
def test_clips_of_a_video_train_separately_and_vote_together(accuracy):
    train, test = digits_split(300)
    one = accuracy(several_clips(train, 2, 6), several_clips(test, 1, 6))
    many = accuracy(several_clips(train, 2, 6), several_clips(test, 10, 6))
    assert many > one + 0.05
    # Every clip is an example of its own: the same fit as on the flattened ones, and a copied clip adds no vote.
    clips = several_clips(train, 2, 6)
    flat = features(clips.vectors.flatten(0, 1), clips.labels.repeat_interleave(2))
    assert accuracy(clips, test) == accuracy(flat, test)
    assert accuracy(train, features(test.vectors[:, None].expand(-1, 3, -1), test.labels)) == accuracy(train, test)


def test_softmax_is_averaged_and_not_the_scores():
    train = features([[-1.0], [1.0]] * 50, [0, 1] * 50)
    clips = features([[[-9.0], [1.0], [1.0]]], [1])  # two of three clips say 1, the third is very sure of 0
    assert linear_accuracy(train, clips, weight_decay=1e-2) == 1
    assert linear_svm_accuracy(train, clips) == 0


@pytest.mark.parametrize("accuracy", [linear_accuracy, linear_svm_accuracy])
@pytest.mark.parametrize("rounding", [0, 1e-7])
def test_a_collapsed_encoder_gets_the_share_of_the_largest_class(accuracy, rounding):
    train, test = digits_split()
    train, test = (features(torch.ones(len(x.labels), 8), x.labels // 4) for x in (train, test))
    generator = torch.Generator().manual_seed(0)
    train.vectors.mul_(1 + rounding * torch.randn(1200, 8, generator=generator))
    test.vectors.mul_(1 + 1e4 * rounding * torch.randn(len(test.labels), 8, generator=generator))  # decides nothing
    shares = torch.bincount(test.labels) / len(test.labels)
    assert accuracy(train, test) == pytest.approx(shares[train.labels.mode().values].item())


@pytest.mark.parametrize("accuracy", [linear_accuracy, linear_svm_accuracy])
def test_one_class_only_and_classes_unseen_in_training(accuracy):
    train, test = digits_split()
    sevens = train.labels == 7
    expected = (test.labels == 7).float().mean().item()
    assert accuracy(features(train.vectors[sevens], train.labels[sevens]), test) == pytest.approx(expected)


@pytest.mark.parametrize("accuracy", [linear_accuracy, linear_svm_accuracy])
def test_unlabeled_examples_are_left_out(accuracy):
    train, test = digits_split()
    expected = accuracy(train, test)
    more = [
        features(torch.cat([x.vectors, torch.full((5, 64), 1e4)]), torch.cat([x.labels, torch.full((5,), -1)]))
        for x in (train, test)
    ]
    assert accuracy(*more) == expected
    with pytest.raises(ValueError, match="labeled"):
        accuracy(train, features(test.vectors, torch.full_like(test.labels, -1)))


def test_every_fold_is_judged_by_what_was_learned_from_the_others():
    train, _ = digits_split(200)
    folds = torch.arange(200) % 4 + 1
    fold_of = [features(train.vectors[folds == f], train.labels[folds == f]) for f in (1, 2, 3, 4)]
    rest_of = [features(train.vectors[folds != f], train.labels[folds != f]) for f in (1, 2, 3, 4)]
    expected = sum(map(linear_svm_accuracy, rest_of, fold_of)) / 4
    assert kfold_accuracy(train, folds) == pytest.approx(expected)
    for wrong in (torch.ones(200), folds[1:]):
        with pytest.raises(ValueError, match="folds"):
            kfold_accuracy(train, wrong)


def test_a_fold_of_labels_without_a_pattern_gets_chance():
    generator = torch.Generator().manual_seed(0)
    noise = features(torch.randn(400, 200, generator=generator), torch.randint(0, 4, (400,), generator=generator))
    assert linear_accuracy(noise, noise) == 1  # it can be learned by heart
    assert kfold_accuracy(noise, torch.arange(400) % 5) == pytest.approx(0.25, abs=0.08)


def test_clip_average_is_the_direction_of_all_clips():
    vectors = torch.tensor([[[3.0, 0.0], [0.0, 1.0]], [[0.0, -2.0], [0.0, -5.0]]])
    assert torch.equal(clip_average(vectors), torch.tensor([[0.5, 0.5], [0.0, -1.0]]))
