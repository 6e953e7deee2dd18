# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Damaged images, tables and tars: no traceback, and unreadable files are counted and named.

Everything is seeded, so a failure can be reproduced from its number.
"""

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from hf_ssl.data.loader import TrainLoader
from hf_ssl.data.pixels import open_image
from hf_ssl.data.sources import Source, load_source
from hf_ssl.data.streams import open_stream
from hf_ssl.data.views import View, eval_image, make_views
from hf_ssl.recipe import DataConfig, RecipeError
from tests.data.pictures import encoded, noise


FAST, SLOW = 300, 2000
VIEWS = [View(size=8)] * 2
MEGAPIXELS = 1.0  # a damaged header can claim a huge size, which would only be slow


def _oriented() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


RGB, DEEP = noise(0, 24), noise(1, 24)[..., 0].astype(np.uint16) * 257
IMAGES = [
    encoded(RGB, "PNG"),
    encoded(DEEP, "PNG"),
    encoded(RGB, "JPEG", exif=_oriented()),
    encoded(RGB, "JPEG", progressive=True),
    encoded(RGB, "TIFF", compression="tiff_lzw"),
    encoded(RGB, "TIFF"),
    encoded(DEEP, "TIFF"),
    encoded(DEEP.astype(np.float32), "TIFF"),
    encoded(DEEP.astype(np.int32), "TIFF"),
    encoded(RGB, "GIF"),
    encoded(RGB, "WEBP"),
    encoded(RGB, "BMP"),
    encoded(RGB, "PPM"),
]


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Some bytes changed, truncated, removed, inserted, or repeated."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        at, length = int(rng.integers(len(data) or 1)), int(rng.integers(1, 40))
        way = rng.integers(6)
        if way == 0:
            data[at : at + length] = rng.bytes(len(data[at : at + length]))
        elif way == 1:
            data = data[:at]
        elif way == 2:
            del data[at : at + length]
        elif way == 3:
            data[at:at] = rng.bytes(length)
        elif way == 4:
            data[at : at + length] = bytes([int(rng.choice([0, 255, 127, 128]))]) * len(data[at : at + length])
        else:
            data[at:at] = data[at : at + length]
    return bytes(data)


amounts = pytest.mark.parametrize("amount", [FAST, pytest.param(SLOW, marks=pytest.mark.slow)])


def readable(content: bytes) -> bool:
    """Whether an image is readable; the three ways to read it must agree."""
    ways = []
    for look in (
        lambda image: make_views(image, VIEWS, (0, 0, 0)),
        lambda image: make_views(image, VIEWS, (0, 0, 0), reference=True),
        lambda image: eval_image(image, 8),
    ):
        try:
            look(open_image({"bytes": content, "path": None}, MEGAPIXELS))
            ways.append(True)
        except Exception as error:  # as in a loader, without exceptions that end the process
            assert str(error) or type(error).__name__
            ways.append(False)
    return all(ways) if ways[1] == ways[2] else ways[0]


@pytest.mark.filterwarnings("ignore")
@amounts
def test_damaged_images_are_skipped_counted_and_named(amount):
    rng = np.random.default_rng(amount)
    contents = [damaged(IMAGES[i % len(IMAGES)], rng) for i in range(amount)]
    records = [{"bytes": content, "path": f"{i}.bin"} for i, content in enumerate(contents)]
    records += [{"bytes": IMAGES[0], "path": "good.png"}] * amount  # ten bad files in a row would end a run
    dataset = Dataset.from_dict({"image": records}, features=Features({"image": ImageFeature()}))
    source = Source(dataset, {"image": None}, max_megapixels=MEGAPIXELS)
    wanted = {f"{i}.bin (row {i} of the dataset)" for i, content in enumerate(contents) if not readable(content)}
    loader = TrainLoader(source, VIEWS, batch_size=20, num_steps=len(records) // 20, max_failed_share=1.0)
    skipped = [skip for batch in loader for skip in batch["skipped"]]
    assert {name for name, _ in skipped} == wanted and len(wanted) > amount / 4
    assert all(reason and "\n" not in reason for _, reason in skipped)


def table() -> bytes:
    records = [{"bytes": encoded(noise(i, 24)), "path": f"{i}.png"} for i in range(12)]
    content = {"image": records, "label": [i % 2 for i in range(12)], "text": ["x"] * 12}
    features = Features({"image": ImageFeature(), "label": Dataset.from_dict({"n": [1]}).features["n"]})
    file = io.BytesIO()
    Dataset.from_dict(content).cast_column("image", features["image"]).to_parquet(file, batch_size=4)
    return file.getvalue()


def tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for i in range(12):
            for name, content in ((f"{i:03}.png", encoded(noise(i, 8))), (f"{i:03}.cls", b"1")):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def show(path: Path, streaming: bool) -> list[tuple[str, str]]:
    """The files skipped in two epochs."""
    data = DataConfig(path=str(path), streaming=streaming, num_examples=8 if streaming else None)
    data = replace(data, max_megapixels=MEGAPIXELS)
    source = open_stream(data) if streaming else load_source(data)
    loader = TrainLoader(source, VIEWS, batch_size=4, num_steps=6, max_failed_share=1.0)
    return [skip for batch in loader for skip in batch["skipped"]]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["parquet", "tar"])
@amounts
def test_a_damaged_shard_is_skipped_or_refused_by_one_sentence(kind, amount, tmp_path, no_waiting):
    """Most cases are streamed; a tenth is map-style, which is slower."""
    rng, good = np.random.default_rng(amount), {"parquet": table, "tar": tar}[kind]()
    refused = skipped = 0
    for i in range(amount):
        path = tmp_path / f"{i}.{kind}"
        path.write_bytes(damaged(good, rng))
        try:
            found = show(path, streaming=i % 10 > 0)
        except RecipeError as error:
            refused += 1
            said = str(error)
            assert "\n" not in said and len(said) < 900, i
        else:
            skipped += bool(found)
            assert all(name and reason and "\n" not in reason for name, reason in found), i
            assert found or i % 10 or len(load_source(DataConfig(path=str(path), label_column=None))) == 12, i
        path.unlink()
    assert refused + skipped > amount / 2


@pytest.mark.filterwarnings("ignore")
@amounts
def test_damaged_metadata_are_refused_by_one_sentence_or_read(amount, tmp_path):
    rng, good = (
        np.random.default_rng(amount),
        b"file_name,label\n" + b"".join(b"%d.png,%d\n" % (i, i) for i in range(6)),
    )
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(IMAGES[0])
    for i in range(amount // 10):
        (tmp_path / "metadata.csv").write_bytes(damaged(good, rng))
        try:
            assert len(load_source(DataConfig(path=str(tmp_path)))) == 6
        except RecipeError as error:
            assert "\n" not in str(error), i
