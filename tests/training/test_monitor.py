# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Diagnostics distinguish a healthy representation from a collapsed one."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from hf_ssl.data.modality import modality_of
from hf_ssl.models import SimSiamConfig, SimSiamForPreTraining
from hf_ssl.recipe import MonitorConfig
from hf_ssl.training.monitor import Monitor, effective_rank


def monitor(num_samples: int = 64) -> Monitor:
    config = SimSiamConfig(image_size=32)
    return Monitor(MonitorConfig(num_samples=num_samples), modality_of(config), config, Accelerator(cpu=True))


def batch(embeddings: torch.Tensor) -> SimpleNamespace:
    return SimpleNamespace(embeddings=embeddings, features=embeddings)


def test_spread_embeddings_are_healthy():
    torch.manual_seed(0)
    watch = monitor()
    for _ in range(4):
        z = torch.randn(16, 1, 32)
        watch.observe(batch(torch.cat([z, z + 0.01], 1)))
    values = watch.diagnostics()
    assert values["embedding_std"] == pytest.approx(1, abs=0.1)
    assert values["effective_rank"] > 20
    assert values["alignment"] < 0.01 < -values["uniformity"]


def test_collapse_is_said_aloud_with_causes(caplog):
    watch = monitor()
    watch.observe(batch(torch.ones(16, 2, 32) + 1e-4 * torch.randn(16, 2, 32)))
    model = torch.nn.Identity()
    model.collapse = SimSiamForPreTraining.collapse
    values = watch.measure(model)
    assert values["embedding_std"] < 0.01
    assert "collapsed" in caplog.text and "learning rate" in caplog.text and "falls to -1" in caplog.text


def test_only_the_newest_images_count():
    watch = monitor(num_samples=16)
    watch.observe(batch(torch.ones(16, 2, 8)))
    watch.observe(batch(torch.randn(16, 2, 8)))
    assert watch.diagnostics()["embedding_std"] > 0.5


def test_nothing_is_reported_before_the_first_step():
    assert monitor().diagnostics() == {}


@pytest.mark.parametrize("rank", [1, 3, 10])
def test_effective_rank_counts_equal_directions(rank):
    basis = torch.linalg.qr(torch.randn(40, rank)).Q
    directions = torch.linalg.qr(torch.randn(12, rank)).Q
    assert effective_rank(basis @ directions.T) == pytest.approx(rank, rel=0.01)
