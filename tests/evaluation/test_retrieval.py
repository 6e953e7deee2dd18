# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Retrieval equals its definition, and no collapse or tie is mistaken for a match."""

import pytest
import torch
import torch.nn.functional as F

from hf_ssl.evaluation.retrieval import positive_precision, retrieval


WAYS = ("video_to_audio", "audio_to_video")


def noisy_pairs(n: int = 60, noise: float = 1.5, dim: int = 16):
    generator = torch.Generator().manual_seed(0)
    video = torch.randn(n, dim, generator=generator)
    return video, video + noise * torch.randn(n, dim, generator=generator)


def test_equals_sorting_all_similarities():
    video, audio = noisy_pairs()
    labels = torch.arange(60) % 7
    results = retrieval(video, audio, labels)
    similarity = F.normalize(video.double(), dim=1) @ F.normalize(audio.double(), dim=1).T
    for way, s in zip(WAYS, (similarity, similarity.T), strict=True):
        order = s.argsort(1, descending=True)
        rank = (order == torch.arange(60)[:, None]).int().argmax(1) + 1
        for k in (1, 5, 10):
            assert results[f"{way}_r{k}"] == pytest.approx((rank <= k).double().mean().item())
        assert results[f"{way}_median_rank"] == rank.double().quantile(0.5).item()
        assert results[f"{way}_p1"] == pytest.approx((labels[order[:, 0]] == labels).double().mean().item())
    assert 0.1 < results["video_to_audio_r1"] < 0.9
    assert results["video_to_audio_r1"] != results["audio_to_video_r1"]  # not one way twice


def test_a_perfect_encoder_finds_all():
    video, _ = noisy_pairs()
    results = retrieval(video, 3 * video, torch.arange(60) % 7)
    assert results == {f"{way}_{key}": 1.0 for way in WAYS for key in ("r1", "r5", "r10", "median_rank", "p1")}


def test_permuted_pairs_are_not_found():
    video, _ = noisy_pairs()
    results = retrieval(video, video.roll(30, 0), torch.arange(60))
    assert results["video_to_audio_r1"] == results["audio_to_video_r1"] == results["video_to_audio_p1"] == 0
    assert results["video_to_audio_median_rank"] > 10


@pytest.mark.parametrize("broken", ["collapsed", "rounding", "zero", "nan", "inf"])
def test_a_collapsed_encoder_gets_chance(broken):
    one = noisy_pairs()[0][:1].expand(60, -1)
    value = {"zero": 0.0, "nan": float("nan"), "inf": float("inf")}.get(broken)
    video = one if value is None else torch.full_like(one, value)
    if broken == "rounding":
        video = one * (1 + 1e-7 * torch.randn(60, 16, generator=torch.Generator().manual_seed(0)))
    labels = torch.tensor([0] * 15 + [1] * 45)
    results = retrieval(video, video, labels)
    for way in WAYS:
        for k in (1, 5, 10):
            assert results[f"{way}_r{k}"] == pytest.approx(k / 60)
        assert results[f"{way}_median_rank"] == 30.5
        assert results[f"{way}_p1"] == pytest.approx((15 * 0.25 + 45 * 0.75) / 60)


def test_a_tie_of_two_is_worth_half():
    video = torch.eye(4)
    video[1] = video[0]
    results = retrieval(video, video, torch.tensor([0, 1, 2, 2]))
    assert results["video_to_audio_r1"] == results["video_to_audio_p1"] == pytest.approx((0.5 + 0.5 + 1 + 1) / 4)
    assert results["video_to_audio_median_rank"] == 1.25
    assert results["video_to_audio_r5"] == 1


def test_chunks_do_not_change_the_result():
    video, audio = noisy_pairs()
    labels = torch.arange(60) % 7 - 1
    assert retrieval(video, audio, labels, chunk=7) == pytest.approx(retrieval(video, audio, labels), abs=1e-6)


def test_unlabeled_clips_count_for_pairs_but_not_for_classes():
    video, audio = noisy_pairs()
    labels = torch.arange(60) % 3
    labels[40:] = -1
    results, labeled = retrieval(video, audio, labels), retrieval(video[:40], audio[:40], labels[:40])
    assert results["video_to_audio_p1"] == pytest.approx(labeled["video_to_audio_p1"])
    assert results["video_to_audio_r1"] == retrieval(video, audio)["video_to_audio_r1"]
    assert "video_to_audio_p1" not in retrieval(video, audio)
    assert "video_to_audio_p1" not in retrieval(video, audio, torch.full((60,), -1))


def test_one_class_is_always_right():
    video, audio = noisy_pairs()
    assert retrieval(video, audio, torch.zeros(60, dtype=torch.long))["audio_to_video_p1"] == 1


def test_fewer_sounds_than_videos_is_an_error():
    video, audio = noisy_pairs()
    for arguments in ((video, audio[1:]), (video[:0], audio[:0]), (video, audio, torch.zeros(3))):
        with pytest.raises(ValueError, match="same clips"):
            retrieval(*arguments)


def test_positive_precision_counts_labeled_pairs():
    labels = torch.tensor([0, 0, 1, 1, -1])
    positives = torch.tensor([[1, 2], [0, 4], [3, 4], [0, 1], [0, 1]], dtype=torch.int32)
    # right: 0-1, 1-0, 2-3; wrong: 0-2, 3-0, 3-1; the others have no label
    assert positive_precision(positives, labels) == 0.5
    assert positive_precision(positives[:2, :1], torch.tensor([0, 0])) == 1
    with pytest.raises(ValueError, match="labeled"):
        positive_precision(positives, torch.full((5,), -1))
