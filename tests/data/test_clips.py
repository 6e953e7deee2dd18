# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Clips: the right frames with matching sound, from any container and source, for any workers and processes."""

import gc
import io
import multiprocessing
import sys
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from datasets import Audio, Dataset, Features, Value, Video

from hf_ssl.data.bank import labeled_sources
from hf_ssl.data.clips import Clips, ClipTransform, ClipViews, eval_clip
from hf_ssl.data.images import Images
from hf_ssl.data.loader import TrainLoader
from hf_ssl.data.photometric import NEUTRAL
from hf_ssl.data.sources import Source, check_source, load_source
from hf_ssl.data.streams import merge_states, open_stream
from hf_ssl.data.views import View, resolve_views
from hf_ssl.models import media_avid
from hf_ssl.models.configuration_avid import AvidConfig
from hf_ssl.models.media_avid import MediaError, even_draws, read_clips, read_sounds
from hf_ssl.recipe import ClipsConfig, DataConfig, MonitorConfig, RecipeError, ViewOverride, ViewsConfig
from tests.data.clips_fixture import CODECS, damage, flash_and_beep, rewritten, truncate, write_clip
from tests.data.test_loader import assert_same


CONFIG = AvidConfig(
    image_size=16,
    num_frames=3,
    frame_rate=8,
    sampling_rate=8000,
    audio_seconds=0.5,
    n_fft=128,
    hop_length=80,
    num_bands=17,
    audio_mean=-30.0,
    audio_std=10.0,
)
VIEW = replace(resolve_views(ViewsConfig(), "avid")[0], size=16)
CLIP = {"num_frames": 4, "frame_rate": 8, "sampling_rate": 16000, "audio_seconds": 1.0}
N = 12


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> list[Path]:
    """All frames of video i have gray level 20 * i."""
    folder = tmp_path_factory.mktemp("videos")
    endings = list(CODECS)
    return [
        write_clip(folder / f"{i:02}.{endings[i % 4]}", seconds=1, grays=[20 * i] * 8, side=16 + 2 * (i % 3))
        for i in range(N)
    ]


def grays(frames: np.ndarray) -> list[int]:
    return frames.mean((1, 2, 3)).round().astype(int).tolist()


def first_above(values: np.ndarray, threshold: float, rate: float) -> float:
    return float((np.abs(values) > threshold).argmax() / rate)


# ---------------------------------------------------------------------------------------------- one file


@pytest.mark.parametrize("content", [False, True])
@pytest.mark.parametrize("ending", CODECS)
def test_picture_and_sound_of_a_clip_belong_together(ending, content, tmp_path):
    file = flash_and_beep(tmp_path / f"both.{ending}", at=1.6)
    late = 0.06 if ending == "avi" else 0  # the writer shifts everything by the MP3 delay, which AVI cannot store
    for draw, start, seconds in (((0, 0.5), 0, 3.0), ((0.5, 0.5), 0.75, 1.5), ((0.999, 0.5), 1.0, 2.0)):
        frames, sound = read_clips(
            file.read_bytes() if content else file,
            [draw],
            num_frames=round(seconds * 20),
            frame_rate=20,
            sampling_rate=16000,
            audio_seconds=seconds,
        )[0]
        assert frames.dtype == np.uint8 and frames.shape == (round(seconds * 20), 32, 32, 3)
        assert sound.dtype == np.float32 and sound.shape == (seconds * 16000,)
        flash, beep = first_above(frames.mean((1, 2, 3)), 128, 20), first_above(sound, 0.2, 16000)
        assert beep == pytest.approx(1.6 - start, abs=0.01 + late)
        assert flash == pytest.approx(beep, abs=0.051 + late)
        assert (np.abs(sound) > 0.2).sum() == pytest.approx(0.05 * 16000 * 0.87, rel=0.15)


def test_the_frame_on_display_is_taken_whatever_the_rate(tmp_path):
    file = write_clip(tmp_path / "slow_and_fast.mkv", times=[0, 0.1, 0.5, 0.55, 1.4, 1.5, 1.9])
    frames, _ = read_clips(file, [(0, 0)], num_frames=10, frame_rate=5, sampling_rate=8000, audio_seconds=2)[0]
    assert np.allclose(grays(frames), 8 * np.array([0, 1, 1, 3, 3, 3, 3, 4, 5, 5]), atol=2)


def test_windows_cover_all_of_the_sound_and_the_frames_stay_near_it(tmp_path):
    rate = CODECS["mkv"][3]
    rising = np.repeat(np.arange(40) / 40, rate // 10) * np.sin(np.arange(4 * rate))  # the amplitude encodes the time
    file = write_clip(
        tmp_path / "rising.mkv",
        seconds=4,
        fps=10,
        grays=[6 * i for i in range(40)],
        sound=rising,
    )
    draws = [tuple(d) for d in np.random.default_rng(0).random((60, 2))]
    options = CLIP | {"num_frames": 1}
    at, apart = [], []
    for frames, sound in read_clips(file, draws, offset=0.5, **options):
        at.append(np.abs(sound).max() * 4 - 1)
        apart.append(grays(frames)[0] / 60 - at[-1])
    assert min(at) < 0.3 and max(at) > 2.7  # one-second windows start in 0..3 s
    assert min(apart) < -0.2 and max(apart) > 1.0 and -0.8 < min(apart) and max(apart) < 1.6
    middle = read_clips(file, even_draws(3), **options)
    assert [grays(f)[0] for f, _ in middle] == pytest.approx([24, 114, 204], abs=8)  # 0.4, 1.9 and 3.4 s


def test_a_short_video_is_tiled_and_a_short_sound_padded(tmp_path):
    file = write_clip(tmp_path / "short.mp4", seconds=0.5)
    frames, sound = read_clips(file, [(0.3, 0.7)], **CLIP | {"num_frames": 10, "audio_seconds": 2.0})[0]
    assert np.allclose(grays(frames), 8 * np.array([0, 1, 2, 3, 0, 1, 2, 3, 0, 1]), atol=2)
    assert np.abs(sound[:7500]).max() > 0.2 and np.abs(sound[9000:]).max() == 0


def test_a_long_video_is_not_decoded_from_its_beginning(tmp_path, monkeypatch):
    file = write_clip(tmp_path / "long.mp4", seconds=60, grays=[i // 8 * 4 for i in range(480)], options={"g": "16"})
    decoded, plain = [], media_avid._decoded
    counting = lambda *of: (decoded.append(frame) or frame for frame in plain(*of))  # noqa: E731
    monkeypatch.setattr(media_avid, "_decoded", counting)
    frames, sound = read_clips(file, [(0.9, 0.5)], **CLIP)[0]  # from 53.1 s on
    assert len(decoded) < 60  # of 480 video and 938 audio frames
    assert np.allclose(grays(frames), 4 * 53, atol=3) and np.abs(sound).max() > 0.2


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda p: write_clip(p / "mute.mp4", audio=False), "no sound"),
        (lambda p: write_clip(p / "dark.mp4", video=False), "no picture"),
        (lambda p: truncate(write_clip(p / "a.mp4"), p / "cut.mp4"), "not a video, or broken"),
        (lambda p: p / "missing.mp4", "No such file"),
        (lambda p: b"", "is empty"),
        (lambda p: b"RIFF nonsense" * 100, "not a video, or broken"),
        (lambda p: truncate(write_clip(p / "a.mkv", seconds=6), p / "cut.mkv", 0.5), "ends before"),
    ],
)
def test_what_cannot_be_read_says_why(make, reason, tmp_path):
    with pytest.raises(MediaError, match=reason) as caught:
        read_clips(make(tmp_path), [(0.99, 0.99)], **CLIP)
    assert "\n" not in str(caught.value)


def test_sound_may_come_from_another_file_and_frames_may_be_too_large(tmp_path):
    mute, other = write_clip(tmp_path / "mute.mp4", audio=False), write_clip(tmp_path / "voice.mkv", video=False)
    frames, sound = read_clips(mute, [(0, 0)], audio=other, **CLIP)[0]
    assert np.allclose(grays(frames), [0, 8, 16, 24], atol=2) and np.abs(sound).max() > 0.2
    with pytest.raises(MediaError, match="megapixels, more than the allowed 0.001"):
        read_clips(mute, [(0, 0)], audio=other, max_megapixels=0.001, **CLIP)


def test_a_few_broken_packets_are_passed_over(tmp_path):
    whole = write_clip(tmp_path / "whole.mp4", seconds=4, grays=np.random.default_rng(0).integers(0, 255, 32).tolist())
    broken = damage(whole, tmp_path / "broken.mp4", 0.30, 0.32)
    frames, sound = read_clips(broken, [(0, 0)], **CLIP | {"num_frames": 30, "audio_seconds": 3.9})[0]
    assert len(frames) == 30 and len(sound) == 3.9 * 16000
    expected, _ = read_clips(whole, [(0, 0)], **CLIP | {"num_frames": 30, "audio_seconds": 3.9})[0]
    assert (np.array(grays(frames)) == grays(expected)).mean() > 0.2


@pytest.mark.parametrize("ending", CODECS)
def test_whatever_is_wrong_with_a_file_is_a_clip_or_one_sentence(ending, tmp_path):
    rng = np.random.default_rng(0)
    whole = write_clip(tmp_path / f"whole.{ending}", grays=rng.integers(0, 255, 16).tolist()).read_bytes()
    read = 0
    for _ in range(40):
        content = bytearray(whole)
        for place in rng.integers(0, len(whole), rng.integers(1, 20)):
            content[place] = rng.integers(256)
        try:
            cut = bytes(content[: rng.integers(len(whole) // 2, 2 * len(whole))])
            frames, sound = read_clips(cut, [(0, 0)], **CLIP)[0]
            assert frames.shape == (4, 32, 32, 3) and sound.shape == (16000,)
            read += 1
        except MediaError:
            pass
    assert read > 5


@pytest.mark.parametrize("name", [b"Lavf", b"DURATION", b"ENCODER"])
@pytest.mark.parametrize("ending", CODECS)
def test_tags_in_another_encoding_than_utf8_do_not_matter(ending, name, tmp_path):
    content = write_clip(tmp_path / f"clip.{ending}").read_bytes()
    foreign = content.replace(name, name[:-1] + b"\xe4")
    (one, other) = (read_clips(read, [(0, 0)], **CLIP)[0] for read in (content, foreign))
    assert np.array_equal(one[0], other[0]) and np.array_equal(one[1], other[1])


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="nothing forks here")
def test_a_forked_worker_does_not_wait_for_what_its_parent_has_read_with(tmp_path):
    gc.disable()
    try:
        read_clips(write_clip(tmp_path / "clip.mp4"), [(0, 0)], **CLIP | {"sampling_rate": 8000})
        worker = multiprocessing.get_context("fork").Process(target=gc.collect)
        worker.start()
    finally:
        gc.enable()
    worker.join(60)
    worker.kill()
    assert worker.exitcode == 0


FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}


@pytest.mark.parametrize(
    ("ending", "container", "options"),
    [
        ("mkv", "matroska", {}),
        ("webm", "webm", {}),
        ("mp4", "mp4", FRAGMENTS),
        ("mkv", "mpegts", {}),
        ("mkv", "flv", {}),
    ],
)
def test_recordings_without_a_duration_are_as_long_as_they_are(ending, container, options, tmp_path):
    file = write_clip(
        tmp_path / f"whole.{ending}", seconds=12, grays=[40 + 2 * i for i in range(96)], options={"g": "8"}
    )
    live = rewritten(file, container, **options)
    with av.open(io.BytesIO(live)) as opened:
        for kind in ("video", "audio", "video"):  # in any order
            start, end = media_avid._extent(opened, opened.streams.best(kind))
            assert end - start == pytest.approx(12, abs=0.13)
    shown = [(grays(frames)[0] - 40) / 16 for frames, _ in read_clips(live, even_draws(3), **CLIP | {"num_frames": 1})]
    assert shown == pytest.approx([0.5, 6, 11.5], abs=0.3)
    sounds = read_sounds(live, 3, sampling_rate=16000, audio_seconds=1.0)
    assert all(np.abs(sound).max() > 0.2 for sound in sounds)


def test_picture_and_sound_that_do_not_overlap_are_no_clip(tmp_path):
    file = write_clip(tmp_path / "both.mkv", seconds=2)
    assert len(read_clips(rewritten(file, "matroska", late=1.5), [(0, 0)], **CLIP)) == 1
    for late in (2.5, 10):
        with pytest.raises(MediaError, match=r"video .0.0 to (1.9|2.0) s. and sound .* do not overlap") as caught:
            read_clips(rewritten(file, "matroska", late=late), [(0, 0)], **CLIP)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("layout", "codec"), [("stereo", "aac"), ("5.1", "flac"), ("5.1", "aac"), ("quad", "flac")])
def test_a_sound_that_all_channels_have_keeps_its_level(layout, codec, tmp_path):
    levels = []
    for name, kind in (("mono", "aac"), (layout, codec)):
        file = write_clip(tmp_path / f"{name}.mkv", layout=name, codec=kind)
        sound = read_clips(file, [(0.5, 0.5)], **CLIP)[0][1]
        levels.append(20 * np.log10(np.sqrt((sound**2).mean())))
    assert levels[1] == pytest.approx(levels[0], abs=0.5)


def broken(whole: dict[str, bytes], rng: np.random.Generator) -> bytes:
    """A random file with random damage."""
    content = bytearray(whole[rng.choice(sorted(whole))])
    first, last = sorted(rng.integers(0, len(content), 2).tolist())
    what = rng.choice(["bytes", "cut", "zeros", "hole", "twice", "noise", "other end"])
    if what == "bytes":
        for place in rng.integers(0, len(content), rng.integers(1, 40)):
            content[place] = rng.integers(256)
    elif what == "cut":
        del content[first:]
    elif what == "zeros":
        content[first:last] = bytes(last - first)
    elif what == "hole":
        del content[first:last]
    elif what == "twice":
        content[last:last] = content[first:last]
    elif what == "noise":
        content[first:last] = rng.bytes(last - first)
    else:
        content[first:] = whole[rng.choice(sorted(whole))][first:]
    return bytes(content)


@pytest.mark.parametrize("count", [300, pytest.param(2000, marks=pytest.mark.slow)])
def test_whatever_is_wrong_with_files_each_is_a_clip_or_skipped_counted_and_named(count, tmp_path):
    rng = np.random.default_rng(count)
    files = {e: write_clip(tmp_path / f"whole.{e}", seconds=1, grays=rng.integers(0, 255, 8), side=16) for e in CODECS}
    whole = {ending: file.read_bytes() for ending, file in files.items()}
    whole |= {"live": rewritten(files["mkv"], "matroska"), "parts": rewritten(files["mp4"], "mp4", **FRAGMENTS)}
    records = [{"bytes": broken(whole, rng), "path": f"{i}.mp4"} for i in range(count)]
    records += [{"bytes": whole["mp4"], "path": "good.mp4"}] * count  # ten bad files in a row would end a run
    loader = loader_of(
        clips_of(Dataset.from_dict({"x": records})), batch_size=20, num_steps=count // 10, max_failed_share=1
    )
    skipped, made = [], 0
    for batch in loader:
        skipped += batch["skipped"]
        made += len(batch["index"])
        assert batch["frames"].shape[1:] == (3, 16, 16, 3) and batch["waveforms"].isfinite().all()
    named = {name.split()[0] for name, _ in skipped}
    assert made == 2 * count and named <= {f"{i}.mp4" for i in range(count)} and count / 5 < len(named) < count
    assert all(reason and "\n" not in reason for _, reason in skipped)


def test_without_pyav_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(RecipeError, match="pip install av"):
        ClipViews(VIEW, CONFIG, ClipsConfig())
    with pytest.raises(RecipeError, match=r"hf_ssl\[video\]"):  # before the path is checked
        check_source(DataConfig(path="/nowhere"), kind="video")


# ---------------------------------------------------------------------------------------------- any source


def cells_of(videos: list[Path]) -> list[dict]:
    return [{"bytes": file.read_bytes(), "path": file.name} for file in videos]


def write_shards(videos: list[Path], folder: Path, ending: str, per_shard: int = 5) -> Path:
    """Parquet or tar shards of five videos, the last one shorter."""
    folder.mkdir()
    for first in range(0, len(videos), per_shard):
        part, file = videos[first : first + per_shard], folder / f"{first:02}.{ending}"
        if ending == "parquet":
            Dataset.from_dict({"video": cells_of(part)}, features=Features({"video": Video()})).to_parquet(file)
            continue
        with tarfile.open(file, "w") as tar:
            for video in part:
                info = tarfile.TarInfo(f"{video.stem}.mp4")  # the content determines the container
                info.size = video.stat().st_size
                tar.addfile(info, io.BytesIO(video.read_bytes()))
    return folder


def clips_of(dataset: Dataset, video: str | None = None, audio: str | None = None) -> Source:
    return Source(dataset, {"video": video, "audio": audio})


def sources(videos: list[Path], tmp_path: Path) -> dict[str, Source]:
    paths = [str(file) for file in videos]
    contents = [file.read_bytes() for file in videos]
    typed = Dataset.from_dict({"clip": paths}, features=Features({"clip": Video()}))
    both = Dataset.from_dict({"a": paths, "b": paths}).cast_column("a", Video()).cast_column("b", Audio())
    load = lambda path: load_source(DataConfig(path=str(path)), kind="video")  # noqa: E731
    return {
        "folder": load(videos[0].parent),
        "video column": clips_of(typed),
        "two columns": clips_of(both),
        "structs": clips_of(Dataset.from_dict({"x": cells_of(videos)})),
        "bytes": clips_of(Dataset.from_dict({"x": contents, "n": [0] * N})),
        "parquet": load(write_shards(videos, tmp_path / "parquet", "parquet")),
        "tar": load(write_shards(videos, tmp_path / "tar", "tar")),
    }


def test_every_kind_of_place_has_the_same_clips(videos, tmp_path):
    for name, source in sources(videos, tmp_path).items():
        assert len(source) == N, name
        for i in (0, 5, 11):
            frames, sound = eval_clip(source.record(i), CONFIG)
            assert frames.shape == (1, 3, 16, 16, 3) and sound.shape == (1, 4000), name
            assert np.allclose(grays(frames[0]), 20 * i, atol=4), name
        assert source.label(0) is None
    part = source.select([3, 4])
    assert len(part) == 2 and np.allclose(eval_clip(part.record(1), CONFIG, 2)[0], 80, atol=4)


def test_folders_with_classes_splits_and_metadata_have_labels(tmp_path):
    for split in ("train", "test"):
        for name, content in (("cats", 1), ("dogs", 2)):
            (tmp_path / "classes" / split / name).mkdir(parents=True)
            write_clip(tmp_path / "classes" / split / name / f"{content}.mp4", seconds=0.5)
        (tmp_path / "table" / split).mkdir(parents=True)
        for i in range(2):
            write_clip(tmp_path / "table" / split / f"{i}.mp4", seconds=0.5)
        (tmp_path / "table" / split / "metadata.csv").write_text("file_name,label\n0.mp4,7\n1.mp4,8\n")
    for folder, labels in (("classes", [0, 1]), ("table", [7, 8])):
        bank, queries = labeled_sources(DataConfig(path=str(tmp_path / folder)), MonitorConfig(), "video")
        assert [bank.label(i) for i in range(2)] == [queries.label(i) for i in range(2)] == labels
        assert "train" in bank.name(0) and "test" in queries.name(0)


def test_a_dataset_without_videos_or_with_several_is_told_so(videos):
    numbers = Dataset.from_dict({"n": [1]})
    with pytest.raises(RecipeError, match="has no video column .columns: n.; a row needs one video"):
        clips_of(numbers)
    paths = [str(videos[0])]
    two = Dataset.from_dict({"l": paths, "r": paths}, features=Features({"l": Video(), "r": Video()}))
    with pytest.raises(RecipeError, match="several video columns .l, r.; set data.video_column"):
        clips_of(two)
    assert np.allclose(eval_clip(clips_of(two, "r").record(0), CONFIG)[0], 0, atol=3)
    with pytest.raises(RecipeError, match="no column 'sound'"):
        clips_of(two, "r", "sound")
    other = Dataset.from_dict({"v": paths, "t": [1]}, features=Features({"v": Video(), "t": Value("int64")}))
    with pytest.raises(RecipeError, match="'t' of the dataset does not hold audios"):
        clips_of(other, audio="t")
    with pytest.raises(RecipeError, match="has no image column"):
        check_source(DataConfig(path=str(videos[0].parent)))


# ---------------------------------------------------------------------------------------------- the loader


def loader_of(source, **changes) -> TrainLoader:
    options = {"batch_size": 4, "num_steps": 6, "seed": 3, "shuffle_block": 3} | changes
    return TrainLoader(source, ClipViews(VIEW, CONFIG, ClipsConfig()), **options)


def stream_of(path, **data):
    return open_stream(DataConfig(path=str(path), streaming=True, **data), kind="video")


def shown(batch: dict) -> list[int]:
    """The videos in a batch, identified by their gray level, which these tests' augmentation preserves."""
    return (batch["frames"].float().mean((1, 2, 3, 4)) / 20).round().long().tolist()


@pytest.fixture(scope="module")
def source(videos) -> Source:
    return load_source(DataConfig(path=str(videos[0].parent)), kind="video")


def test_a_batch_has_frames_numbers_sound_and_rows(source):
    batch = next(iter(loader_of(source)))
    assert batch["frames"].shape == (4, 3, 16, 16, 3)
    assert batch["params"].shape == (4, len(NEUTRAL)) and batch["waveforms"].shape == (4, 4000)
    assert shown(batch) == batch["index"].tolist() and batch["skipped"] == []
    inputs = ClipTransform(CONFIG)(batch)
    assert inputs["pixel_values_videos"].shape == (4, 3, 3, 16, 16)
    assert inputs["input_values"].shape == (4, CONFIG.num_audio_frames, 17)
    assert inputs["indices"].equal(batch["index"])


def test_workers_processes_and_interruptions_change_nothing(source):
    whole = list(loader_of(source))
    assert_same(whole, list(loader_of(source, num_workers=2)))
    assert_same(whole[2:], list(loader_of(source, start_step=2)))
    parts = [list(loader_of(source, rank=r, world_size=2)) for r in range(2)]
    for batch, *pair in zip(whole, *parts, strict=True):
        assert torch.cat([p["waveforms"] for p in pair]).equal(batch["waveforms"])
        assert torch.cat([p["index"] for p in pair]).equal(batch["index"])
    assert not whole[0]["params"].equal(list(loader_of(source, seed=4))[0]["params"])


@pytest.mark.parametrize("kind", ["parquet", "tar", "folder"])
def test_a_stream_has_the_rows_of_the_map_and_goes_on_where_it_stopped(kind, videos, tmp_path):
    path = videos[0].parent if kind == "folder" else write_shards(videos, tmp_path / kind, kind, per_shard=4)
    stream = stream_of(path)
    assert stream.num_examples == stream.rows()[-1] == N
    whole = list(loader_of(stream))
    for epoch in (whole[:3], whole[3:]):
        assert sorted(i for batch in epoch for i in batch["index"].tolist()) == list(range(N))
    assert all(shown(batch) == batch["index"].tolist() for batch in whole)
    for workers in (0, 2):
        first = loader_of(stream_of(path), num_workers=workers)
        begun = [batch for _, batch in zip(range(2), first, strict=False)]
        rest = list(loader_of(stream_of(path), start_step=2, num_workers=workers, state=first.state()))
        assert_same(whole, begun + rest)


def test_the_rows_of_a_continued_stream_are_those_of_its_beginning(videos, tmp_path):
    path = write_shards(videos, tmp_path / "tar", "tar")
    first = loader_of(stream_of(path))
    next(iter(first))
    state = merge_states([first.state()])
    assert state["shard_lengths"] == [5, 5, 2]
    (path / "00.tar").write_bytes((path / "10.tar").read_bytes())  # now two examples
    stream = stream_of(path)
    assert stream.rows().tolist() == [0, 2, 7, 9]
    loader_of(stream, state=state)
    assert stream.rows().tolist() == [0, 5, 10, 12]


def test_new_examples_of_a_shard_share_its_last_row_and_take_none_of_the_next(videos, tmp_path):
    stream = stream_of(write_shards(videos, tmp_path / "tar", "tar"))
    stream.shard_lengths = [3, 0, 2]  # counted before two of the shards grew
    seen = [i for batch in loader_of(stream) for i in batch["index"].tolist()]
    assert sorted(set(seen)) == [0, 1, 2, 3, 4] and [seen.count(row) for row in (3, 4)] == [4, 4]  # over two epochs


def test_broken_files_are_named_replaced_and_the_rows_are_those_that_are_seen(videos, tmp_path):
    folder = tmp_path / "some_broken"
    folder.mkdir()
    for file in videos:
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / videos[3].name).write_bytes(b"no video")
    write_clip(folder / "05.webm", seconds=1, audio=False)
    (folder / videos[5].name).write_bytes((folder / "05.webm").read_bytes())
    for place in (load_source(DataConfig(path=str(folder)), kind="video"), stream_of(folder)):
        batches = list(loader_of(place, num_steps=3, max_failed_share=1.0))
        skipped = {Path(name).name: reason for batch in batches for name, reason in batch["skipped"]}
        assert skipped.keys() == {videos[3].name, videos[5].name}
        assert "broken" in skipped[videos[3].name] and "no sound" in skipped[videos[5].name]
        assert all(shown(batch) == batch["index"].tolist() for batch in batches)
        counts = Counter(i for batch in batches for i in batch["index"].tolist())
        assert not {3, 5} & counts.keys() and sum(counts.values()) == N


def test_nothing_but_broken_files_stops_with_the_last_reason(tmp_path):
    for i in range(8):
        (tmp_path / f"{i}.mp4").write_bytes(b"no video")
    for place in (load_source(DataConfig(path=str(tmp_path)), kind="video"), stream_of(tmp_path)):
        with pytest.raises(RecipeError, match=r"clips could not be read, most recently .*mp4 \(not a video"):
            list(loader_of(place))


def test_a_row_without_video_is_a_skipped_clip(videos):
    records = [None if i == 2 else {"bytes": None, "path": str(f)} for i, f in enumerate(videos)]
    source = clips_of(Dataset.from_dict({"video": records}, features=Features({"video": Video(decode=False)})))
    batches = list(loader_of(source, num_steps=3, max_failed_share=1.0))
    assert [skip for batch in batches for skip in batch["skipped"]] == [
        ("row 2 of the dataset", "the row has no video")
    ]


def test_the_preview_of_a_stream_has_its_first_clips(videos, tmp_path):
    head = stream_of(write_shards(videos, tmp_path / "tar", "tar")).head(3)
    assert isinstance(head, Source) and len(head) == 3
    assert np.allclose(eval_clip(head.record(2), CONFIG)[0], 40, atol=4)
    paths = [str(file) for file in videos]
    both = Dataset.from_dict({"a": paths, "b": paths}).cast_column("a", Video()).cast_column("b", Audio())
    head = open_stream(DataConfig(streaming=True), both.to_iterable_dataset(num_shards=2), "video").head(2)
    assert head.record(1)["audio"]["path"] == paths[1]


# ---------------------------------------------------------------------------------------------- views of a clip


def test_all_frames_of_a_clip_have_one_crop_flip_and_color(tmp_path):
    file = write_clip(tmp_path / "still.mkv", seconds=1, grays=[100] * 8)
    source = clips_of(Dataset.from_dict({"v": [str(file)] * 4}, features=Features({"v": Video()})))
    inputs = ClipTransform(CONFIG)(next(iter(loader_of(source))))
    frames = inputs["pixel_values_videos"]
    assert torch.allclose(frames, frames[:, :1].expand_as(frames), atol=0.06)
    assert frames.mean((1, 2, 3, 4)).std() > 0.05  # each clip has its own colors


def test_volume_and_reference_colors(source):
    batch = next(iter(loader_of(source)))
    quiet = ClipViews(VIEW, CONFIG, ClipsConfig(volume=0.0))
    plain = next(iter(TrainLoader(source, quiet, batch_size=4, num_steps=6, seed=3)))
    factor = batch["waveforms"].abs().amax(1) / plain["waveforms"].abs().amax(1)
    assert ((factor - 1).abs() < 0.1).all() and factor.std() > 0.01
    stage1 = ClipViews(VIEW, CONFIG, ClipsConfig(), reference=True)
    done = next(iter(TrainLoader(source, stage1, batch_size=4, num_steps=6, seed=3)))
    assert (done["params"] == torch.from_numpy(NEUTRAL)).all()
    fast, slow = (ClipTransform(CONFIG)(b)["pixel_values_videos"].mean((1, 2, 3, 4)) for b in (batch, done))
    assert torch.allclose(fast, slow, atol=0.1)


def test_inference_clips_are_center_cropped_and_normalized(tmp_path):
    file = write_clip(tmp_path / "plain.mp4", seconds=2, side=48)
    frames, sound = eval_clip({"bytes": None, "path": str(file)}, CONFIG, num_clips=4)
    assert frames.shape == (4, 3, 16, 16, 3) and sound.shape == (4, 4000)
    assert grays(frames[0]) < grays(frames[1]) < grays(frames[3])
    inputs = ClipTransform(CONFIG).normalize(torch.from_numpy(frames), torch.from_numpy(sound))
    assert inputs["pixel_values_videos"].shape == (4, 3, 3, 16, 16) and "indices" not in inputs
    expected = (frames[2, 1, 5, 5] / 255 - np.array(CONFIG.image_mean)) / np.array(CONFIG.image_std)
    assert np.allclose(inputs["pixel_values_videos"][2, 1, :, 5, 5], expected, atol=1e-5)


def test_a_clip_has_one_view():
    (view,) = resolve_views(ViewsConfig(), "avid")
    assert view == View(
        size=224,
        scale=(0.08, 1.0),
        interpolation="bilinear",
        jitter=(0.4, 0.4, 0.4, 0.2),
        jitter_prob=1,
        grayscale=0,
        blur=0,
    )
    with pytest.raises(RecipeError, match="A clip has a single view"):
        Clips().check_views(resolve_views(ViewsConfig(second=ViewOverride(count=1)), "avid"))
    with pytest.raises(RecipeError, match="At least two views"):
        Images().check_views(resolve_views(ViewsConfig(preset="avid"), "byol"))


def test_gray_frames_are_refused():
    config = AvidConfig(num_channels=1, image_mean=[0.5], image_std=[0.5])
    with pytest.raises(RecipeError, match="model.num_channels=1"):
        ClipViews(VIEW, config, ClipsConfig())
