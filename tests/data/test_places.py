# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Data paths: one or several, weighted, in the home directory, with braces, globs and URLs."""

import io
from collections import Counter
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from hf_ssl.cli import build_parser
from hf_ssl.data.bank import labeled_sources
from hf_ssl.data.loader import TrainLoader
from hf_ssl.data.places import expand_braces
from hf_ssl.data.sources import check_source, load_source
from hf_ssl.data.streams import open_stream
from hf_ssl.data.views import View
from hf_ssl.recipe import DataConfig, MonitorConfig, RecipeError, load_recipe, recipe_from_dict
from tests.data.pictures import encoded, gray


def png(shade: int) -> bytes:
    return encoded(gray(shade))


def parquet(path: Path, shades, **columns) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    records = {"image": [{"bytes": png(shade), "path": None} for shade in shades]}
    features = {"image": ImageFeature()} | {name: values[1] for name, values in columns.items()}
    content = records | {name: values[0] for name, values in columns.items()}
    Dataset.from_dict(content, features=Features(features)).to_parquet(path)
    return path


def images(root: Path, shades) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for shade in shades:
        (root / f"{shade:03}.png").write_bytes(png(shade))
    return root


def shades(source) -> list[int]:
    return [source.image(i).getpixel((0, 0))[0] for i in range(len(source))]


def said(call, *args, **kwargs) -> str:
    with pytest.raises(RecipeError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------------------------------------- home


def test_the_home_folder_is_expanded_wherever_a_recipe_or_an_argument_names_a_path(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    content = {
        "method": "byol",
        "data": {"path": ["~/a", {"path": "~/b", "weight": 2}]},
        "monitor": {"path": "~/c"},
        "model": {"init_from": "~/d"},
        "train": {"steps": 1, "output_dir": "~/e", "init_from": "~/f"},
    }
    recipe = recipe_from_dict(content)
    found = [*recipe.data.paths, recipe.monitor.path, recipe.model["init_from"]]
    found += [recipe.train.output_dir, recipe.train.init_from]
    assert found == [str(tmp_path / name) for name in "abcdef"]
    assert DataConfig(path="~/x").path == MonitorConfig(path="~/x").path == str(tmp_path / "x")
    for command in (
        "evaluate knn ~/x --data ~/x",
        "export ~/x --output ~/x",
        "push ~/x user/name",
        "card ~/x",
        "convert ~/x --output ~/x --classifier ~/x",
        "pretrain ~/x",
        "preview ~/x --output ~/x",
    ):
        given = vars(build_parser().parse_args(command.split()))
        assert not any(isinstance(value, str) and "~" in value for value in given.values()), command


@pytest.mark.parametrize("name", ["2024", "007", "2024_01", "2024-05-01", "1.10", "1e3"])
def test_a_folder_may_be_called_like_a_number_or_a_date(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images(tmp_path / name, [1, 2])
    recipe = load_recipe(
        "my_images", [f"data.path={name}", f"train.output_dir={name}", "train.epochs=null", "train.steps=3"]
    )
    assert (recipe.data.path, recipe.train.output_dir, recipe.train.steps) == (name, name, 3)
    assert len(load_source(recipe.data)) == 2


def test_a_year_in_a_recipe_file_is_a_path_too(tmp_path):
    (tmp_path / "r.yaml").write_text(
        "method: byol\ndata: {path: 2024}\nmonitor: {path: 2024-05-01}\ntrain: {steps: 1}\n"
    )
    recipe = load_recipe(tmp_path / "r.yaml")
    assert (recipe.data.path, recipe.monitor.path) == ("2024", "2024-05-01")
    for wrong in (
        "true",
        "[true]",
        "{a: 1}",
        "[]",
        "[{weight: 2}]",
        "[{path: x, weight: 0}]",
        "[{path: x, wieght: 1}]",
    ):
        assert "data.path" in said(load_recipe, "my_images", [f"data.path={wrong}"])


# ---------------------------------------------------------------------------------------------- several paths


def test_a_list_of_places_is_one_after_the_other_whatever_their_columns_are_called(tmp_path):
    a, b = images(tmp_path / "a", [1, 2]), parquet(tmp_path / "b" / "train.parquet", [3, 4, 5])
    pq.write_table(pa.table({"photo": [{"bytes": png(6), "path": None}], "x": [1]}), tmp_path / "c.parquet")
    data = DataConfig(path=[str(a), str(b.parent), str(tmp_path / "c.parquet")])
    assert shades(load_source(data)) == [1, 2, 3, 4, 5, 6]
    assert shades(load_source(DataConfig(path=list(data.paths), max_examples=4))) == [1, 2, 3, 4]
    assert "nowhere" in said(load_source, DataConfig(path=[str(a), str(tmp_path / "nowhere")]))
    assert f"{a} has no split 'test'" in said(check_source, DataConfig(path=[str(a)]), "test")


def test_a_weight_says_how_often_a_places_images_are_shown_in_an_epoch(tmp_path):
    a, b, c = (images(tmp_path / name, range(start, start + 10)) for name, start in (("a", 0), ("b", 20), ("c", 40)))
    weights = {a: 2, b: 0.3, c: 1.5}
    content = {"method": "byol", "train": {"steps": 1}}
    content["data"] = {"path": [{"path": str(path), "weight": weight} for path, weight in weights.items()]}
    data = recipe_from_dict(content).data
    counts = Counter(shades(load_source(data)))
    assert all(counts[shade] == 2 for shade in range(10))
    assert sum(counts[shade] for shade in range(20, 30)) == 3 and max(counts[shade] for shade in range(20, 30)) == 1
    assert sorted(counts[shade] for shade in range(40, 50)) == [1] * 5 + [2] * 5
    assert shades(load_source(data)) == shades(load_source(data)), "the same part at every start"
    again = recipe_from_dict(recipe_from_dict(content).to_dict()).data
    assert again == data and str(again.path) == f"{a}, {b}, {c}"
    shared = recipe_from_dict(content).shareable().data
    assert shared.paths == ["a", "b", "c"] and [place.weight for place in shared.path] == [2, 0.3, 1.5]


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_a_stream_of_several_places_shows_each_as_often_as_its_weight(kind, tmp_path):
    for name, start in (("a", 0), ("b", 20)):
        if kind == "folder":
            images(tmp_path / name, range(start, start + 8))
        for shard in (0, 4) if kind == "parquet" else ():
            parquet(tmp_path / name / f"train-{shard}.parquet", range(start + shard, start + shard + 4))
    places = [{"path": str(tmp_path / "a"), "weight": 2}, {"path": str(tmp_path / "b")}]
    recipe = recipe_from_dict(
        {"method": "byol", "train": {"steps": 1}, "data": {"path": places, "streaming": True, "partitions": 2}}
    )
    stream = open_stream(recipe.data)
    assert stream.num_examples == 24
    plain = View(size=8, scale=(1.0, 1.0), jitter_prob=0, grayscale=0, blur=0)
    counts = Counter()
    for batch in TrainLoader(stream, [plain] * 2, batch_size=4, num_steps=6):
        counts.update(batch["views"][0, :, 0, 0, 0].tolist())
    assert counts == Counter(dict.fromkeys(range(8), 2)) + Counter(dict.fromkeys(range(20, 28), 1))


def test_what_a_weight_cannot_mean_is_refused(tmp_path):
    for name in "ab":
        parquet(tmp_path / name / "train.parquet", [1, 2, 3])
    places = [{"path": str(tmp_path / "a"), "weight": 1.5}, {"path": str(tmp_path / "b")}]
    data = recipe_from_dict(
        {"method": "byol", "train": {"steps": 1}, "data": {"path": places, "streaming": True}}
    ).data
    assert "whole numbers" in said(open_stream, data)


def test_labels_of_several_places_are_kept_where_all_have_the_same_classes_and_counted_once(tmp_path):
    labels = ([0, 1, 0, 1], ClassLabel(names=["x", "y"]))
    a = parquet(tmp_path / "a.parquet", range(4), label=labels)
    b = parquet(tmp_path / "b.parquet", range(10, 14), label=labels)
    other = parquet(tmp_path / "c.parquet", range(4), label=([0] * 4, ClassLabel(names=["z"])))
    weighted = recipe_from_dict(
        {"method": "byol", "train": {"steps": 1}, "data": {"path": [{"path": str(a), "weight": 3}, str(b)]}}
    ).data
    assert len(load_source(weighted)) == 16
    bank, queries = labeled_sources(weighted, MonitorConfig())
    assert len(bank) + len(queries) == 8
    assert labeled_sources(DataConfig(path=[str(a), str(other)]), MonitorConfig()) == (None, None)


# ---------------------------------------------------------------------------------------------- patterns and URLs


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a", ["a"]),
        ("{a,b}/c", ["a/c", "b/c"]),
        ("x-{08..11}.tar", ["x-08.tar", "x-09.tar", "x-10.tar", "x-11.tar"]),
        ("{a,b}{1,2}", ["a1", "a2", "b1", "b2"]),
        ("{a,{b,c}}", ["a", "b", "a", "c"]),
        ("{", ["{"]),
    ],
)
def test_braces_are_expanded_as_a_shell_does(text, wanted):
    assert expand_braces(text) == wanted


def test_braces_and_globs_name_shards_here_and_behind_a_url(tmp_path):
    for name, shade in (("one", 1), ("some", 2), ("none", 3)):
        parquet(tmp_path / f"label_{name}.parquet", [shade])
    for place in (f"{tmp_path}/label_{{one,some}}.parquet", f"file://{tmp_path}/label_{{one,some}}.parquet"):
        assert sorted(shades(load_source(DataConfig(path=place)))) == [1, 2]
    memory = fsspec.filesystem("memory")
    for i in range(3):
        memory.pipe(f"/shards/{i}.parquet", (tmp_path / "label_one.parquet").read_bytes())
    for place, count in (("memory://shards/*.parquet", 3), ("memory://shards/{0,2}.parquet", 2)):
        assert open_stream(DataConfig(path=place, streaming=True)).num_shards == count


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("https://example.com/photos", "is not a Parquet or tar file"),
        ("s3://bucket/folder/", "is not a Parquet or tar file"),
        ("hf://datasets/user/name", "is not a Parquet or tar file"),
        ("nosuch://x/a.parquet", "could not be loaded"),
        ("memory://nowhere/*.parquet", "No file matches"),
        ("nowhere/{a,b}.tar", "No file matches"),
        ("photos/*", "does not exist"),
    ],
)
def test_a_place_that_is_not_read_is_one_sentence_with_the_forms_that_are(path, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = said(check_source, DataConfig(path=path))
    assert text in message and path in message
    if "names no" in text or "exist" in text:
        assert all(form in message for form in ("folder", "Parquet", "https://", "{a,b}", "Hub", "list"))


# ---------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize("extra", [0, 1])
def test_shards_whose_other_columns_differ_are_read_whole(tmp_path, extra):
    for shard in range(3):
        more = {"score": ([0.5] * 4, Value("float32"))} if (shard == 1) == bool(extra) else {}
        parquet(
            tmp_path / f"train-{shard}.parquet", range(4 * shard, 4 * shard + 4), id=([0] * 4, Value("int64")), **more
        )
    assert shades(load_source(DataConfig(path=str(tmp_path)))) == list(range(12))
    stream = open_stream(DataConfig(path=str(tmp_path), streaming=True))
    batches = list(TrainLoader(stream, [View(size=8)] * 2, batch_size=4, num_steps=3))
    assert not any(batch["skipped"] for batch in batches)


@pytest.mark.parametrize("at", [-4, -8, 0])
def test_the_parquet_file_that_is_damaged_is_named(at, tmp_path):
    for name in "abc":
        parquet(tmp_path / f"{name}.parquet", [1, 2])
    content = bytearray((tmp_path / "b.parquet").read_bytes())
    content[at] ^= 0xFF
    (tmp_path / "b.parquet").write_bytes(content if at else content[:-8])
    text = said(load_source, DataConfig(path=str(tmp_path)))
    assert "1 of 3 Parquet files" in text and "b.parquet" in text and "data.streaming=true" in text


@pytest.mark.parametrize("first", [0, 1])
def test_rows_of_shards_that_lack_the_labels_have_none(tmp_path, first):
    parquet(tmp_path / f"train-{first}.parquet", [0, 1], label=([0, 1], Value("int64")))
    parquet(tmp_path / f"train-{1 - first}.parquet", [2, 3])
    source = load_source(DataConfig(path=str(tmp_path)))
    labels = dict(zip(shades(source), [source.label(i) for i in range(4)], strict=True))
    assert labels == {0: 0, 1: 1, 2: None, 3: None}


def test_a_column_of_paths_or_of_plain_bytes_is_read_when_it_is_named(tmp_path):
    folder = images(tmp_path / "images", [7, 8])
    pq.write_table(
        pa.table({"image": [str(p) for p in sorted(folder.iterdir())], "n": [1, 2]}), tmp_path / "p.parquet"
    )
    pq.write_table(pa.table({"jpg": [png(7), png(8)], "caption": ["a", "b"]}), tmp_path / "b.parquet")
    for name, column in (("p", "image"), ("b", "jpg")):
        for streaming in (False, True):
            data = DataConfig(path=str(tmp_path / f"{name}.parquet"), streaming=streaming)
            message = said(open_stream if streaming else load_source, data)
            assert f"set data.image_column to one of {column}" in message
            data = replace(data, image_column=column)
            source = open_stream(data).head(2) if streaming else load_source(data)
            assert shades(source) == [7, 8]


def test_a_table_of_ten_thousand_columns_is_no_list_of_them(tmp_path):
    pq.write_table(pa.table({f"c{i}": [i] for i in range(10_000)}), tmp_path / "wide.parquet")
    assert len(said(load_source, DataConfig(path=str(tmp_path / "wide.parquet")))) < 500
    data = DataConfig(path=str(tmp_path / "wide.parquet"), image_column="image")
    assert len(said(load_source, data)) < 500


def test_a_table_without_a_possible_column_says_what_a_row_needs():
    from hf_ssl.data.sources import source_of

    nested = Dataset.from_dict({"image": np.zeros((4, 8, 8, 3), np.uint8).tolist()})
    text = said(source_of, nested, DataConfig())
    assert "needs one image" in text and "set data.image_column" not in text, "no column could be named"


class CountedFile(AbstractBufferedFile):
    """An in-memory file that records the size of each request."""

    def _fetch_range(self, start, end):
        self.fs.requests.append(end - start)
        return self.fs.files[self.path][start:end]


class Counted(AbstractFileSystem):
    """A file system that `datasets` takes for a remote one."""

    protocol = "counted"
    files: dict[str, bytes] = {}
    requests: list[int] = []

    def info(self, path, **_):
        return {"name": path, "size": len(self.files[self._strip_protocol(path)]), "type": "file"}

    def _open(self, path, mode="rb", block_size=None, autocommit=True, cache_options=None, **_):
        return CountedFile(self, path, mode, block_size or "default", cache_options=cache_options)


def test_a_remote_stream_asks_for_several_row_groups_at_once():
    fsspec.register_implementation("counted", Counted, clobber=True)
    records = [{"bytes": png(i) + np.random.default_rng(i).bytes(2**20), "path": None} for i in range(48)]
    table = Dataset.from_dict({"image": records}, features=Features({"image": ImageFeature()})).with_format("arrow")[:]
    pq.write_table(table, buffer := io.BytesIO(), row_group_size=12)
    Counted.files["shard.parquet"] = buffer.getvalue()
    stream = open_stream(DataConfig(path="counted://shard.parquet", streaming=True))
    Counted.requests.clear()
    assert sum(1 for _ in stream.examples(0)) == 48
    assert max(Counted.requests) > 48 * 2**20
