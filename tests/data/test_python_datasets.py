# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Datasets created in Python: filtered, mapped, generated, transformed."""

import datasets
import numpy as np
import pytest
from datasets import Dataset, Features, IterableDataset
from datasets import Image as ImageFeature

from hf_ssl.data.loader import TrainLoader
from hf_ssl.data.sources import source_of
from hf_ssl.data.streams import open_stream
from hf_ssl.data.views import View
from hf_ssl.recipe import DataConfig, RecipeError
from tests.data.pictures import gray as picture


PLAIN = View(size=8, scale=(1.0, 1.0), jitter_prob=0, grayscale=0, blur=0, flip=0)
TYPED = Features({"image": ImageFeature()})
WITH_N = Features({"image": ImageFeature(), "n": datasets.Value("int64")})


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(4):
        images = [picture(4 * shard + i) for i in range(4)]
        Dataset.from_dict({"image": images, "n": list(range(4))}, features=WITH_N).to_parquet(
            folder / f"{shard}.parquet"
        )
    return f"{folder}/*.parquet"


def brighter(example: dict) -> dict:
    return {"image": example["image"].point(lambda value: value + 100)}


def generate(starts):
    for start in starts:
        for i in range(4):
            yield {"image": picture(start + i)}


def generate_bytes(starts):
    for start in starts:
        for i in range(4):
            yield {"image": ImageFeature().encode_example(picture(start + i))["bytes"]}


FIRST_THREE = [value for value in range(16) if value % 4 < 3]
STREAMS = {
    "as they are": (lambda s: s, range(16)),
    "filtered": (lambda s: s.filter(lambda e: e["image"].getpixel((0, 0))[0] % 4 < 3), FIRST_THREE),
    "filtered by another column": (lambda s: s.filter(lambda e: e["n"] < 3), FIRST_THREE),
    "mapped without features": (lambda s: s.map(brighter), range(100, 116)),
    "mapped with features": (lambda s: s.map(brighter, features=WITH_N), range(100, 116)),
    "mapped and filtered": (lambda s: s.map(brighter).filter(lambda e: True), range(100, 116)),
    "in torch's format": (lambda s: s.with_format("torch"), range(16)),
    "of one column": (lambda s: s.select_columns(["image"]), range(16)),
    "shuffled": (lambda s: s.shuffle(seed=1, buffer_size=4), range(16)),
}
GIVEN = {
    "generated": lambda: IterableDataset.from_generator(generate, gen_kwargs={"starts": [0, 4, 8, 12]}),
    "generated with features": lambda: IterableDataset.from_generator(
        generate, gen_kwargs={"starts": [0, 4, 8, 12]}, features=TYPED
    ),
    "generated as one shard": lambda: IterableDataset.from_generator(generate, gen_kwargs={"starts": (0, 4, 8, 12)}),
}


def shown(stream, steps: int, workers: int = 0) -> list[int]:
    loader = TrainLoader(stream, [PLAIN] * 2, batch_size=2, num_steps=steps, num_workers=workers)
    batches = list(loader)
    assert not any(batch["skipped"] for batch in batches)
    return sorted(value for batch in batches for value in batch["views"][0, :, 0, 0, 0].tolist())


@pytest.mark.parametrize("kind", STREAMS)
def test_a_stream_that_python_changes_is_shown_as_it_is_then(kind, shards, monkeypatch):
    # `datasets` sleeps for seconds after each shard of a shuffled stream, in case Arrow threads are still reading.
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.2, raising=False)
    change, wanted = STREAMS[kind]
    stream = change(datasets.load_dataset("parquet", data_files=shards, split="train", streaming=True))
    assert shown(open_stream(DataConfig(num_examples=len(wanted)), stream), len(wanted) // 2) == list(wanted)


@pytest.mark.parametrize("kind", GIVEN)
@pytest.mark.parametrize("workers", [0, 1])
def test_generated_images_are_taken_as_they_are(kind, workers):
    stream = open_stream(DataConfig(), GIVEN[kind]())
    assert shown(stream, 8, workers) == list(range(16))
    assert [stream.head(3).image(i).getpixel((0, 0))[0] for i in range(3)] == [0, 1, 2]


def test_a_stream_of_python_images_continues_to_the_example():
    whole = list(TrainLoader(open_stream(DataConfig(), GIVEN["generated"]()), [PLAIN] * 2, batch_size=2, num_steps=6))
    first = TrainLoader(open_stream(DataConfig(), GIVEN["generated"]()), [PLAIN] * 2, batch_size=2, num_steps=2)
    list(first)
    rest = {"start_step": 2, "num_steps": 6, "batch_size": 2, "state": first.state()}
    for a, b in zip(
        whole[2:], TrainLoader(open_stream(DataConfig(), GIVEN["generated"]()), [PLAIN] * 2, **rest), strict=True
    ):
        assert np.array_equal(a["views"], b["views"])


def test_plain_bytes_of_a_generator_are_read_when_they_are_named():
    stream = IterableDataset.from_generator(generate_bytes, gen_kwargs={"starts": [0, 4]})
    with pytest.raises(RecipeError, match="set data.image_column to one of image"):
        open_stream(DataConfig(), stream)
    assert shown(open_stream(DataConfig(image_column="image"), stream), 4) == list(range(8))


def broken(starts):
    raise KeyError("a file")
    yield


def empty(starts):
    yield from ()


def arrays(starts):
    yield {"image": np.zeros((8, 8, 3), np.uint8)}


@pytest.mark.parametrize(
    ("generator", "text"),
    [(broken, "cannot be loaded: KeyError"), (empty, "has no examples"), (arrays, "needs one image")],
)
def test_a_generator_that_gives_no_images_is_one_sentence(generator, text):
    with pytest.raises(RecipeError, match=text):
        open_stream(DataConfig(), IterableDataset.from_generator(generator, gen_kwargs={"starts": [1, 2]}))


# ---------------------------------------------------------------------------------------------- map-style


def test_a_datasets_own_transform_is_followed(caplog):
    dataset = Dataset.from_dict({"image": [picture(i) for i in range(6)]}, features=TYPED)
    turned = dataset.with_transform(
        lambda rows: {"image": [image.point(lambda v: v + 100) for image in rows["image"]]}
    )
    source = source_of(turned, DataConfig())
    assert [source.image(i).getpixel((0, 0))[0] for i in range(6)] == list(range(100, 106))
    assert source.select([3]).image(0).getpixel((0, 0))[0] == 103
    (batch,) = TrainLoader(source, [PLAIN] * 2, batch_size=6, num_steps=1, num_workers=1)
    assert sorted(batch["views"][0, :, 0, 0, 0].tolist()) == list(range(100, 106))
    assert not caplog.text
    source_of(dataset.with_transform(lambda rows: {"n": [1] * len(rows["image"])}), DataConfig())
    assert "not applied" in caplog.text


def test_a_transform_that_makes_tensors_is_refused_with_what_to_return():
    dataset = Dataset.from_dict({"image": [picture(i) for i in range(3)]}, features=TYPED)
    tensors = dataset.with_transform(lambda rows: {"image": [np.asarray(image) for image in rows["image"]]})
    with pytest.raises(RecipeError, match="return PIL images"):
        source_of(tensors, DataConfig())


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([[picture(1), picture(2)]] * 3, "needs one image"),
        ([np.zeros((4, 4, 3), np.uint8).tolist()] * 3, "needs one image"),
        (["a.png", "b.png"], "set data.image_column to one of image"),
    ],
)
def test_a_column_that_holds_no_image_a_row_says_what_to_do(values, text):
    with pytest.raises(RecipeError, match=text):
        source_of(Dataset.from_dict({"image": values}), DataConfig())
