# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Real images that ship in a wheel (scikit-learn's handwritten digits), as the files that people have."""

import os
import tempfile


os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "HF_SSL_CACHE" not in os.environ:  # what a test keeps is gone with the tests
    _features = tempfile.TemporaryDirectory(prefix="hf_ssl_tests_")
    os.environ["HF_SSL_CACHE"] = _features.name

from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from datasets import ClassLabel, Dataset, Features, Image  # noqa: E402
from PIL import Image as PILImage  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402


torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--drill", type=int, default=1, metavar="N", help="N times as much in tests/training/test_drill.py"
    )


def digit_images(count: int, side: int = 32) -> tuple[list[PILImage.Image], list[int]]:
    """The first `count` digits as RGB images."""
    digits = load_digits()
    gray = (digits.images[:count] * 15.9).astype(np.uint8)
    images = [PILImage.fromarray(g).resize((side, side), PILImage.Resampling.BILINEAR).convert("RGB") for g in gray]
    return images, digits.target[:count].tolist()


def digit_dataset(start: int, stop: int) -> Dataset:
    images, labels = digit_images(stop)
    features = Features({"image": Image(), "label": ClassLabel(names=[str(d) for d in range(10)])})
    return Dataset.from_dict({"image": images[start:stop], "label": labels[start:stop]}, features=features)


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """A folder with train.parquet (128 labeled images) and test.parquet (64)."""
    folder = tmp_path_factory.mktemp("digits")
    digit_dataset(0, 128).to_parquet(folder / "train.parquet")
    digit_dataset(128, 192).to_parquet(folder / "test.parquet")
    return folder


def write_shards(folder: Path) -> Path:
    """The same 128 images in four files."""
    for i in range(4):
        digit_dataset(32 * i, 32 * i + 32).to_parquet(folder / f"train-{i}.parquet")
    return folder


@pytest.fixture(scope="session")
def videos(tmp_path_factory) -> Path:
    """A folder with train/ (24 videos with sound in two class folders) and test/ (8), a second each."""
    from tests.data.clips_fixture import write_clip

    folder = tmp_path_factory.mktemp("videos")
    for split, count in (("train", 24), ("test", 8)):
        for i in range(count):
            label, generator = i % 2, np.random.default_rng(i + 100 * (split == "test"))
            place = folder / split / ("high", "low")[label]
            place.mkdir(parents=True, exist_ok=True)
            grays = [int(g) for g in generator.integers(0, 100, 8) + 155 * label]
            time = np.arange(16000) / 16000
            sound = 0.3 * np.sin(2 * np.pi * (2000, 300)[label] * time) + 0.02 * generator.standard_normal(16000)
            write_clip(place / f"{i:02}.mp4", seconds=1.0, grays=grays, sound=sound)
    return folder


@pytest.fixture
def no_waiting(monkeypatch):
    """What fails is tried again at once."""
    from hf_ssl.data import streams

    monkeypatch.setattr(streams, "_BACK_OFF", 0.0)


@pytest.fixture(scope="session")
def elsewhere(tmp_path_factory):
    """A Python that has not met hf_ssl, with an empty cache of models and their code."""
    from tests.fresh import interpreter, without_hf_ssl

    with interpreter(without_hf_ssl(tmp_path_factory.mktemp("home"))) as started:
        yield started


@pytest.fixture(autouse=True)
def no_methods_of_other_tests():
    """A method that a test has loaded from a file would be taken in the next one."""
    from hf_ssl.models import METHODS

    known = set(METHODS)
    yield
    for name in METHODS.keys() - known:
        del METHODS[name]


def randomized(model):
    """Statistics and scales that would betray a wrong order of layers."""
    torch.manual_seed(0)
    for tensor in model.state_dict().values():
        if tensor.dim() == 1 and tensor.is_floating_point():
            tensor.data.uniform_(0.5, 1.5)
    return model.eval()
