# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Streams: every example once per epoch, for any workers, processes and restarts, and despite broken shards."""

import io
import tarfile
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset, Features, IterableDataset
from PIL import Image

from hf_ssl.data.loader import TrainLoader
from hf_ssl.data.streams import ImageStream, merge_states, open_stream
from hf_ssl.data.views import View
from hf_ssl.preview import preview
from hf_ssl.recipe import DataConfig, RecipeError, recipe_from_dict
from tests.data.test_loader import assert_same, joined, png


VIEWS = [View(size=16), View(size=16, blur=0.0), View(size=8, local=True)]
LENGTHS = (12, 12, 12, 12, 12, 12, 12, 12)
UNEVEN = (3, 17, 1, 9, 30, 2, 5, 11)


def write_parquet(folder: Path, lengths=LENGTHS) -> Path:
    folder.mkdir()
    first = 0
    for shard, length in enumerate(lengths):
        records = [{"bytes": png(first + i), "path": f"photo{first + i}.png"} for i in range(length)]
        columns = {"image": records, "url": [f"photo {first + i}" for i in range(length)]}
        features = Features({"image": datasets.Image(), "url": datasets.Value("string")})
        Dataset.from_dict(columns, features=features).to_parquet(folder / f"train-{shard:02}.parquet")
        first += length
    return folder


def write_tars(folder: Path, lengths=LENGTHS) -> Path:
    folder.mkdir()
    first = 0
    for shard, length in enumerate(lengths):
        with tarfile.open(folder / f"{shard:02}.tar", "w") as tar:
            for i in range(first, first + length):
                for name, content in ((f"{i:05}.png", png(i)), (f"{i:05}.json", b'{"url": "somewhere"}')):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        first += length
    return folder


def write_images(folder: Path, count: int) -> Path:
    for i in range(count):
        file = folder / f"album{i % 3}" / f"{i:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(i))
    return folder


@pytest.fixture(scope="module")
def parquet(tmp_path_factory) -> Path:
    return write_parquet(tmp_path_factory.mktemp("stream") / "even")


@pytest.fixture(scope="module")
def uneven(tmp_path_factory) -> Path:
    return write_parquet(tmp_path_factory.mktemp("stream") / "uneven", UNEVEN)


def stream_of(path: Path | str, **data) -> ImageStream:
    return open_stream(DataConfig(path=str(path), streaming=True, **data))


def loader_of(path, stream=None, **changes) -> TrainLoader:
    options = {"batch_size": 16, "num_steps": 12, "seed": 3, "shuffle_block": 5} | changes
    return TrainLoader(stream or stream_of(path), VIEWS, **options)


def seen(batches: list[dict]) -> Counter:
    return Counter(index for batch in batches for index in batch["index"].tolist())


# ---------------------------------------------------------------------------------------------- epochs


def test_an_epoch_shows_every_example_once_and_the_next_one_in_another_order_with_other_views(parquet):
    batches = list(loader_of(parquet))  # 12 steps of 16 are two epochs of 96
    for epoch in (batches[:6], batches[6:]):
        assert len(seen(epoch)) == 96 and set(seen(epoch).values()) == {1}
    assert [b["index"].tolist() for b in batches[:6]] != [b["index"].tolist() for b in batches[6:]]
    assert batches[0]["index"].tolist() != sorted(batches[0]["index"].tolist())
    assert not batches[0]["views"].equal(batches[6]["views"])


def test_the_order_and_the_views_are_the_seeds(parquet):
    assert_same(list(loader_of(parquet, num_steps=2)), list(loader_of(parquet, num_steps=2)))
    other = list(loader_of(parquet, num_steps=2, seed=4))
    assert other[0]["index"].tolist() != next(iter(loader_of(parquet)))["index"].tolist()


def test_shards_of_any_length_are_shown_in_full_before_they_are_shown_again(uneven):
    """No waiting for the longest shard: a partition starts its next epoch as soon as it has finished one."""
    batches = list(loader_of(uneven, num_steps=30, batch_size=8))
    counts = seen(batches)
    assert len(counts) == sum(UNEVEN)
    for shard, length in enumerate(UNEVEN):
        own = [counts[shard << 32 | i] for i in range(length)]
        assert sum(own) == 30 and max(own) - min(own) <= 1


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_change_nothing(uneven, workers):
    assert_same(list(loader_of(uneven)), list(loader_of(uneven, num_workers=workers)))


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("processes", [2, 4, 8])
def test_a_global_batch_is_the_same_on_any_number_of_processes(uneven, processes, accumulation):
    options = {"num_steps": 6, "batch_size": 16, "accumulation": accumulation}
    one = list(loader_of(uneven, **options))
    parts = [list(loader_of(uneven, rank=r, world_size=processes, **options)) for r in range(processes)]
    assert_same(one, [joined(list(batch)) for batch in zip(*parts, strict=True)])


def test_processes_that_do_not_divide_the_partitions_still_show_everything_once(parquet):
    parts = [list(loader_of(parquet, rank=r, world_size=3, batch_size=24, num_steps=4)) for r in range(3)]
    counts = seen([batch for part in parts for batch in part])
    assert set(counts.values()) <= {1, 2} and sum(counts.values()) == 96


# ---------------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["parquet", "tar", "folder"])
def test_continued_at_any_step_it_goes_on_as_if_nothing_had_happened(kind, workers, tmp_path):
    make = {"parquet": write_parquet, "tar": write_tars, "folder": lambda p, n: write_images(p, sum(n))}
    path = make[kind](tmp_path / "data", UNEVEN)
    whole = list(loader_of(path, num_steps=9))
    for stop in (1, 4, 7):
        first = loader_of(path, num_steps=9, num_workers=workers)
        begun = [batch for _, batch in zip(range(stop), first, strict=False)]
        rest = list(loader_of(path, num_steps=9, start_step=stop, num_workers=workers, state=first.state()))
        assert_same(whole, begun + rest)


@pytest.mark.parametrize("after", [1, 2, 3, 8])
@pytest.mark.parametrize("before", [1, 2, 4])
def test_continued_on_other_processes_nothing_is_lost_or_shown_twice(parquet, before, after):
    begun, states = [], []
    for rank in range(before):
        loader = loader_of(parquet, rank=rank, world_size=before, batch_size=24, num_steps=2)
        begun += list(loader)
        states.append(loader.state())
    state = merge_states(states)
    assert len(state["cursors"]) == 8
    options = {"start_step": 2, "num_steps": 4, "batch_size": 24, "state": state}
    rest = [b for r in range(after) for b in loader_of(parquet, rank=r, world_size=after, **options)]
    counts = seen(begun + rest)
    assert sum(counts.values()) == 96
    if 8 % after == 0:
        assert set(counts.values()) == {1}
    else:  # partitions progress at different speeds, but each without gaps
        assert max(counts.values()) <= 2


def test_continued_twice_a_partition_that_had_no_turn_in_between_stays_where_it_was(parquet):
    whole = list(loader_of(parquet, num_steps=24, batch_size=4))
    seen_so_far, state = [], None
    for start, stop in ((0, 5), (5, 6), (6, 7), (7, 24)):  # four images from eight partitions: half get no turn
        loader = loader_of(parquet, num_steps=stop, start_step=start, batch_size=4, state=state)
        seen_so_far += list(loader)
        state = loader.state()
        assert len(state["cursors"]) == 8
    assert_same(whole, seen_so_far)
    assert set(seen(seen_so_far).values()) == {1}


def test_a_shard_that_becomes_corrupt_does_not_change_the_length_of_the_epoch_that_a_checkpoint_knows(
    tmp_path, no_waiting
):
    path = write_parquet(tmp_path / "data")
    loader = loader_of(path)
    (path / "train-03.parquet").write_bytes(b"nothing")
    assert loader.state()["num_examples"] == 96
    assert stream_of(path).num_examples == 84


def test_a_checkpoint_of_other_shards_is_refused(parquet, tmp_path):
    loader = loader_of(parquet, num_steps=1)
    list(loader)
    fewer = write_parquet(tmp_path / "fewer", LENGTHS[:6])
    with pytest.raises(RecipeError, match="has 6 shards, but the checkpoint has 8"):
        loader_of(fewer, state=loader.state())


# ---------------------------------------------------------------------------------------------- broken data


def stand_in_batches(path: Path, **changes) -> tuple[list[dict], list[tuple[str, str]]]:
    batches = list(loader_of(path, **{"max_failed_share": 1.0} | changes))
    for batch in batches:
        assert batch["views"].flatten(2).any(2).all()  # no blank images
    return batches, [skip for batch in batches for skip in batch["skipped"]]


@pytest.mark.parametrize("broken", [0, 3])
@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_a_corrupt_shard_is_tried_again_named_and_passed_over(kind, broken, tmp_path, no_waiting):
    path = {"parquet": write_parquet, "tar": write_tars}[kind](tmp_path / "data")
    file = sorted(path.iterdir())[broken]
    file.write_bytes(b"no shard at all" * 100)
    stream = stream_of(path, partitions=2)
    batches, skipped = stand_in_batches(path, stream=stream, num_steps=5, batch_size=16)
    assert {name for name, _ in skipped} == {str(file)} and all("given up" in reason for _, reason in skipped)
    counts = seen(batches)
    assert not any(index >> 32 == broken for index in counts)
    assert len([i for i in counts if (i >> 32) % 2 != broken % 2]) == 40  # the other partition is unaffected
    assert max(counts.values()) <= 2


def test_a_truncated_tar_gives_what_it_has(tmp_path, no_waiting):
    path = write_tars(tmp_path / "data", (6, 6))
    file = path / "01.tar"
    with tarfile.open(file) as tar:
        fourth = tar.getmember("00009.png")
    file.write_bytes(file.read_bytes()[: fourth.offset_data + 600])
    batches, skipped = stand_in_batches(path, num_steps=3, batch_size=4)
    assert skipped[0][0] == str(file) and "given up after 3 examples" in skipped[0][1]
    counts = seen(batches)
    assert {i & 0xFFFFFFFF for i in counts if i >> 32 == 1} == {0, 1, 2}
    assert sum(counts.values()) == 12


def test_a_vanished_shard_and_a_vanished_image_are_passed_over(tmp_path, no_waiting):
    shards = write_parquet(tmp_path / "shards", (6, 6, 6, 6))
    stream = stream_of(shards, partitions=2)
    (shards / "train-02.parquet").unlink()
    _, skipped = stand_in_batches(shards, stream=stream, num_steps=4, batch_size=8)
    assert {Path(name).name for name, _ in skipped} == {"train-02.parquet"}

    folder = write_images(tmp_path / "folder", 12)
    stream = stream_of(folder)
    (folder / "album0" / "003.png").unlink()
    batches, skipped = stand_in_batches(folder, stream=stream, num_steps=3, batch_size=4)
    assert [Path(name).name for name, _ in skipped] == ["003.png"]
    assert sum(seen(batches).values()) == 12  # a skipped example still counts as its turn


def test_a_transient_failure_loses_nothing(parquet, monkeypatch, no_waiting):
    plain, trouble = IterableDataset.__iter__, iter([3, 9, 2])

    def shaky(self):
        fail_at = next(trouble, None)
        for i, example in enumerate(plain(self)):
            if i == fail_at:
                raise ConnectionError("the network is away")
            yield example

    whole = list(loader_of(parquet, num_steps=6))
    monkeypatch.setattr(IterableDataset, "__iter__", shaky)
    assert_same(whole, list(loader_of(parquet, num_steps=6)))


def test_broken_empty_and_huge_images_are_named_and_replaced(tmp_path):
    huge = io.BytesIO()
    Image.new("L", (10_000, 6_000), 128).save(huge, "PNG")
    records = [{"bytes": png(i), "path": f"photo{i}.png"} for i in range(16)]
    records[2] = {"bytes": huge.getvalue(), "path": "huge.png"}
    records[5] = {"bytes": b"GIF89a nonsense", "path": "broken.gif"}
    records[9] = None
    Dataset.from_dict({"image": records}, features=Features({"image": datasets.Image()})).to_parquet(
        tmp_path / "train.parquet"
    )
    for workers in (0, 2):
        batches, skipped = stand_in_batches(tmp_path, num_steps=2, batch_size=8, num_workers=workers)
        reasons = {name.split(" ")[0]: reason for name, reason in skipped}
        assert reasons["huge.png"] == "60.0 megapixels, more than data.max_megapixels=50"
        assert "not an image" in reasons["broken.gif"]
        assert "no image" in next(reason for name, reason in skipped if name.startswith("example 9 of"))
        assert sum(seen(batches).values()) == 16
    assert not stand_in_batches(tmp_path, stream=stream_of(tmp_path, max_megapixels=60), num_steps=1)[1][3:]


def test_a_batch_without_a_readable_image_or_a_partition_without_a_readable_shard_stops_with_a_reason(
    tmp_path, no_waiting
):
    records = [{"bytes": b"nothing", "path": f"{i}.jpg"} for i in range(8)]
    Dataset.from_dict({"image": records}, features=Features({"image": datasets.Image()})).to_parquet(
        tmp_path / "train.parquet"
    )
    with pytest.raises(RecipeError, match=r"images could not be read, most recently .*jpg"):
        list(loader_of(tmp_path, batch_size=4))
    (tmp_path / "train.parquet").rename(tmp_path / "away")
    shards = write_parquet(tmp_path / "shards", (4, 4))
    stream = stream_of(shards)
    (shards / "train-01.parquet").write_bytes(b"PAR1")
    with pytest.raises(RecipeError, match=r"No shard of partition 1 could be read: .*train-01"):
        list(loader_of(shards, stream=stream, batch_size=4))


# ---------------------------------------------------------------------------------------------- paths and settings


def test_parquet_tar_folder_and_python_streams_have_the_same_images(tmp_path):
    places = [write_parquet(tmp_path / "p"), write_tars(tmp_path / "t"), write_images(tmp_path / "i", 96)]
    assert stream_of(places[0]).num_examples == 96 and stream_of(places[2]).num_examples == 96
    assert stream_of(places[1]).num_examples is None
    assert stream_of(f"{places[0]}/*.parquet").num_shards == stream_of(f"{places[1]}/*.tar").num_shards == 8
    dataset = datasets.load_dataset(str(places[0]), split="train", streaming=True)
    sources = [stream_of(place) for place in places] + [open_stream(DataConfig(streaming=True), dataset)]
    for stream in sources:
        records = [record for shard in range(stream.num_shards) for record in stream.examples(shard)]
        content = {record["bytes"] or Path(record["path"]).read_bytes() for record in records}
        assert content == {png(i) for i in range(96)}


def test_few_files_are_split_by_row_group_when_more_partitions_are_asked_for(tmp_path):
    rows = {"image": [{"bytes": png(i), "path": None} for i in range(24)]}
    Dataset.from_dict(rows, features=Features({"image": datasets.Image()})).to_parquet(
        tmp_path / "one.parquet", batch_size=6
    )
    stream = stream_of(tmp_path, partitions=4)
    assert stream.num_shards == 4
    assert set(seen(list(loader_of(tmp_path, stream=stream, batch_size=12, num_steps=2))).values()) == {1}
    with pytest.raises(RecipeError, match=r"4 shard\(s\), fewer than data.partitions=5"):
        stream_of(tmp_path, partitions=5)


def test_more_processes_than_partitions_is_one_sentence(parquet):
    with pytest.raises(RecipeError, match=r"8 partition\(s\), fewer than the 16 processes; set data.partitions"):
        loader_of(parquet, rank=0, world_size=16)


def test_the_global_random_state_stays_untouched(parquet):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    next(iter(loader_of(parquet)))
    assert torch.get_rng_state().equal(before[0]) and (np.random.get_state()[1] == before[1]).all()


def test_a_stream_can_be_previewed(parquet, tmp_path):
    content = {"method": "swav", "data": {"path": str(parquet), "streaming": True}, "train": {"steps": 1}}
    path = preview(recipe_from_dict(content), num_images=2, output=tmp_path / "seen.png")
    assert Image.open(path).size[0] > 200
