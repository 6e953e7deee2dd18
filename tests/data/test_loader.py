# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Order and views depend only on (seed, epoch, example, view), not on workers, processes or the starting step."""

import multiprocessing
import pickle
import random
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from hf_ssl.data.images import ImageViews
from hf_ssl.data.loader import TrainLoader
from hf_ssl.data.views import View
from hf_ssl.data.workers import WorkerError
from hf_ssl.recipe import RecipeError
from tests.data.pictures import encoded, noise
from tests.sources import ImageSource


VIEWS = [View(size=16), View(size=16, blur=0.0), View(size=8, local=True)]
N, BATCH = 40, 12  # three batches per epoch, four images left over


def png(seed: int, side: int = 20) -> bytes:
    return encoded(noise(seed, side))


def source_of(n: int = N, broken: dict[int, bytes | None] | None = None, side: int = 20) -> ImageSource:
    records = [{"bytes": png(i, side), "path": None} for i in range(n)]
    for index, content in (broken or {}).items():
        records[index] = None if content is None else {"bytes": content, "path": f"photo{index}.png"}
    return ImageSource(Dataset.from_dict({"image": records}, features=Features({"image": ImageFeature()})))


@pytest.fixture(scope="module")
def source() -> ImageSource:
    return source_of()


def batches(source: ImageSource, **changes) -> list[dict]:
    options = {"batch_size": BATCH, "num_steps": 7, "seed": 3} | changes
    how = {name: options.pop(name) for name in ("reference", "channels") if name in options}
    return list(TrainLoader(source, ImageViews(options.pop("views", VIEWS), **how), **options))


def assert_same(ours: list[dict], theirs: list[dict]) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for key, value in a.items():
            assert torch.equal(value, b[key]) if isinstance(value, torch.Tensor) else value == b[key], key


def joined(parts: list[dict]) -> dict:
    """Join the micro-batches of all processes, in order, into the global batch."""
    joined = {"skipped": [item for part in parts for item in part["skipped"]]}
    for key in parts[0].keys() - joined.keys():
        joined[key] = torch.cat([part[key] for part in parts], dim=0 if key == "index" else 1)
    return joined


# ---------------------------------------------------------------------------------------------- output


def test_a_batch_is_a_few_large_tensors_view_by_view(source):
    batch = batches(source, num_steps=1)[0]
    assert batch["views"].shape == (2, 12, 16, 16, 3) and batch["views"].dtype == torch.uint8
    assert batch["local_views"].shape == (1, 12, 8, 8, 3)
    assert batch["params"].shape[:2] == (2, 12) and batch["local_params"].shape[:2] == (1, 12)
    assert batch["index"].shape == (12,) and batch["skipped"] == []
    assert "local_views" not in batches(source, num_steps=1, views=VIEWS[:2])[0]


def test_an_epoch_shows_no_example_twice_and_every_epoch_has_its_own_order_and_views(source):
    run = batches(source, num_steps=6)
    epochs = [torch.cat([b["index"] for b in run[i : i + 3]]).tolist() for i in (0, 3)]
    assert all(len(set(epoch)) == 36 for epoch in epochs) and epochs[0] != epochs[1]
    seen = [{int(i): b["views"][:, n] for b in run[e : e + 3] for n, i in enumerate(b["index"])} for e in (0, 3)]
    both = seen[0].keys() & seen[1].keys()
    assert both and not any(torch.equal(seen[0][i], seen[1][i]) for i in both)


def test_another_seed_is_another_run(source):
    assert (
        batches(source, num_steps=1)[0]["index"].tolist() != batches(source, num_steps=1, seed=4)[0]["index"].tolist()
    )


def test_gray_images_come_with_one_channel(source):
    assert batches(source, num_steps=1, channels=1)[0]["views"].shape == (2, 12, 16, 16, 1)


def test_reference_colors_are_done_by_the_loader(source):
    plain, done = batches(source, num_steps=1)[0], batches(source, num_steps=1, reference=True)[0]
    assert torch.equal(plain["index"], done["index"])
    assert (done["params"] == done["params"][0, 0]).all() and not (plain["params"] == plain["params"][0, 0]).all()
    assert not torch.equal(plain["views"], done["views"])


# ---------------------------------------------------------------------------------------------- workers and processes


@pytest.mark.parametrize("reference", [False, True])
def test_the_batches_are_the_same_with_no_and_with_two_workers(source, reference):
    assert_same(batches(source, reference=reference), batches(source, reference=reference, num_workers=2))


def test_the_batches_are_the_same_from_a_spawned_worker(source):
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("spawn", force=True)
    try:
        spawned = batches(source, num_steps=2, num_workers=1)
    finally:
        multiprocessing.set_start_method(before, force=True)
    assert_same(spawned, batches(source, num_steps=2))


@pytest.mark.parametrize(("processes", "accumulation"), [(2, 1), (4, 1), (1, 3), (2, 2)])
def test_the_global_batch_is_the_same_for_any_processes_and_accumulation(source, processes, accumulation):
    whole = batches(source)
    options = {"world_size": processes, "accumulation": accumulation}
    runs = [batches(source, rank=rank, **options) for rank in range(processes)]
    for step, batch in enumerate(whole):
        micro = range(step * accumulation, (step + 1) * accumulation)
        parts = [runs[rank][m] for m in micro for rank in range(processes)]
        assert {len(part["index"]) for part in parts} == {BATCH // processes // accumulation}
        assert_same([joined(parts)], [batch])


@pytest.mark.parametrize("start", [1, 3, 5])
def test_a_run_continues_at_any_step_as_if_never_interrupted(source, start):
    assert_same(batches(source, start_step=start, accumulation=2), batches(source, accumulation=2)[2 * start :])


def test_continuing_reads_nothing_of_what_came_before(source, monkeypatch):
    opened = []
    monkeypatch.setattr(
        ImageSource, "record", lambda self, i, real=ImageSource.record: opened.append(i) or real(self, i)
    )
    last = batches(source, start_step=6)
    assert opened == last[0]["index"].tolist()


def test_global_random_states_are_left_alone(source):
    def states():
        return torch.get_rng_state(), random.getstate(), pickle.dumps(np.random.get_state())

    before = states()
    for workers in (0, 2):
        batches(source, num_steps=1, num_workers=workers)
    after = states()
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


@pytest.mark.parametrize("which", [0, -1])
def test_a_worker_that_dies_with_a_batch_not_yet_handed_over_is_one_sentence(source, which):
    loader = iter(TrainLoader(source, VIEWS, batch_size=BATCH, num_steps=50, num_workers=2))
    before = set(multiprocessing.active_children())
    next(loader)
    time.sleep(1)  # the next batches are ready, in shared memory held by the workers
    workers = sorted(set(multiprocessing.active_children()) - before, key=lambda worker: worker.pid)
    workers[which].kill()
    with pytest.raises(WorkerError, match="ran out of memory.*data.num_workers"):
        list(loader)


# ---------------------------------------------------------------------------------------------- errors


def test_images_that_cannot_be_read_are_replaced_and_named_the_same_by_any_worker():
    broken = {3: b"no image", 7: png(7)[:200], 11: None, 12: b""}
    source = source_of(broken=broken)
    run = batches(source, num_steps=3, max_failed_share=1.0)
    turns = [int(i) for batch in run for i in batch["index"]]
    skipped = [item for batch in run for item in batch["skipped"]]
    names = {
        3: "photo3.png (row 3 of the dataset)",
        7: "photo7.png (row 7 of the dataset)",
        11: "row 11 of the dataset",
    }
    names[12] = names[3].replace("3", "12")
    for index, name in names.items():
        assert [n for n, _ in skipped].count(name) >= turns.count(index)
    assert {name for name, _ in skipped} <= set(names.values()) and all(reason for _, reason in skipped)
    good = {
        int(i): batch["views"][:, n]
        for batch in batches(source_of(), num_steps=3)
        for n, i in enumerate(batch["index"])
    }
    for batch in run:
        for n, index in enumerate(batch["index"].tolist()):
            if index in broken:
                assert batch["views"][:, n].float().std() > 10, "another image is in its place"
            else:
                assert torch.equal(batch["views"][:, n], good[index])
    assert_same(run, batches(source, num_steps=3, max_failed_share=1.0, num_workers=2))


def test_an_image_of_absurd_size_is_skipped_like_a_broken_one(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)  # Pillow raises above twice this limit
    run = batches(source_of(broken={i: png(i, side=30) for i in range(5)}), num_steps=3)
    skipped = [item for batch in run for item in batch["skipped"]]
    assert skipped and all(name.startswith("photo") and "exceeds limit" in reason for name, reason in skipped)


def test_too_many_unreadable_images_stop_the_run_and_few_do_not():
    broken = dict.fromkeys(range(0, 120, 4), b"no image")
    source = source_of(120, broken)
    options = {"views": [replace(VIEWS[0], size=4)] * 2, "batch_size": 30, "num_steps": 8}
    assert len(batches(source, max_failed_share=0.5, **options)) == 8
    loader = iter(TrainLoader(source, options.pop("views"), **options, max_failed_share=0.1))
    next(loader)  # the failure rate is not checked before 100 images
    with pytest.raises(RecipeError, match=r"could not be read.*photo.*max_failed_share"):
        list(loader)


def test_a_dataset_without_any_readable_image_stops_the_run_at_once():
    source = source_of(12, dict.fromkeys(range(12), b"no image"))
    with pytest.raises(RecipeError, match="photo"):
        batches(source, max_failed_share=1.0)


def test_a_batch_larger_than_the_dataset_is_refused(source):
    with pytest.raises(RecipeError, match="train.batch_size=41 exceeds the 40 examples"):
        TrainLoader(source, VIEWS, batch_size=41, num_steps=1)


def test_channels_that_no_image_has_are_refused(source):
    with pytest.raises(RecipeError, match="num_channels=4"):
        ImageViews(VIEWS, channels=4)
