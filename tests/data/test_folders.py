# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Real-world folders: links, splits, classes, metadata, leftover files and odd names."""

import io
import os
import re
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from hf_ssl.data.folders import say, split_of
from hf_ssl.data.sources import available_splits, load_source
from hf_ssl.recipe import DataConfig, RecipeError


PNG = io.BytesIO()
Image.new("RGB", (12, 10), (90, 100, 200)).save(PNG, "PNG")


@pytest.fixture(autouse=True)
def say_again():
    say.cache_clear()


def make(root: Path, *files: str) -> Path:
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PNG.getvalue())
    return root


def layout(root: Path) -> dict[str, dict[str, int | None]]:
    """Split -> {file relative to the root: class name}."""
    data, found = DataConfig(path=str(root)), {}
    for split in available_splits(data):
        source = load_source(data, split)
        labels = [source.label(i) for i in range(len(source))]
        names = available_splits(data)[split]["label"].names if source.label_column else None
        files = [os.path.relpath(source.name(i), root) for i in range(len(source))]
        found[split] = {f: None if n is None else names[n] for f, n in zip(files, labels, strict=True)}
    return found


def files_of(root: Path, split: str = "train") -> list[str]:
    return list(layout(root)[split])


# ---------------------------------------------------------------------------------------------- links and names


def test_a_link_to_a_folder_that_is_there_anyway_multiplies_nothing(tmp_path, caplog):
    make(tmp_path, "a/0.png", "a/1.png", "b/2.png")
    os.symlink(".", tmp_path / "latest")
    os.symlink("..", tmp_path / "a" / "up")
    os.symlink("b", tmp_path / "aa")
    assert layout(tmp_path) == {"train": {"a/0.png": "a", "a/1.png": "a", "b/2.png": "b"}}
    assert "3 symbolic link(s)" in caplog.text and str(tmp_path) in caplog.text


def test_links_out_of_a_folder_are_followed_and_those_in_circles_end(tmp_path):
    make(tmp_path / "elsewhere", "x.png")
    root = make(tmp_path / "root", "a/0.png")
    os.symlink(tmp_path / "elsewhere", root / "b")
    for one, other in (("c", "d"), ("d", "c")):
        (tmp_path / one).mkdir(exist_ok=True)
        (tmp_path / other).mkdir(exist_ok=True)
        os.symlink(tmp_path / other, tmp_path / one / "on")
    os.symlink(tmp_path / "c", root / "c")
    assert files_of(root) == ["a/0.png", "b/x.png"]


def test_a_file_counts_once_in_a_split_and_the_file_itself_before_its_links(tmp_path, caplog):
    root = make(tmp_path, "all/0.png", "all/1.png", "all/2.png")
    for split, names in (("train", "01"), ("test", "2")):
        for name in names:
            (root / split).mkdir(exist_ok=True)
            os.symlink(root / "all" / f"{name}.png", root / split / f"{name}.png")
    os.symlink(root / "train" / "0.png", root / "train" / "00.png")
    os.symlink(root / "all" / "0.png", root / "all" / "-0.png")
    (root / "train" / "sub").mkdir()
    make(root, "train/sub/3.png")
    found = layout(root)
    assert list(found["all"]) == ["all/0.png", "all/1.png", "all/2.png"]
    assert len(found["train"]) == 3 and list(found["test"]) == ["test/2.png"]
    assert "point to files that are read anyway" in caplog.text


@pytest.mark.parametrize("name", "a.JPG b.jfif c.jpe d.JFIF e.TIF f.Tiff g.PNG h.pjpeg i.JpE j.WebP".split())
def test_every_usual_extension_is_an_image_in_any_case(tmp_path, name):
    assert files_of(make(tmp_path, name, "x.jpg.bak", "y.png~", "Thumbs.db", "z.txt")) == [name]


def test_a_name_that_is_not_utf8_is_counted_and_named_and_the_rest_is_used(tmp_path, caplog):
    make(tmp_path, "a/0.png", "b/0.png")
    for name in (b"a/caf\xe9.png", b"b/\xff.png"):
        with open(os.fsencode(tmp_path) + b"/" + name, "wb") as file:
            file.write(PNG.getvalue())
    assert files_of(tmp_path) == ["a/0.png", "b/0.png"]
    assert "2 file(s)" in caplog.text and "not UTF-8" in caplog.text and "a/caf\ufffd.png" in caplog.text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_said_and_left_out(tmp_path, caplog):
    make(tmp_path, "0.png", "lost+found/1.png")
    (tmp_path / "lost+found").chmod(0)
    assert files_of(tmp_path) == ["0.png"]
    assert "1 folder(s)" in caplog.text


@pytest.mark.parametrize("name", ["set[1] (a)", "what?", "all*", "{a,b}", "100% [x]"])
def test_special_characters_in_a_path_work_for_images_metadata_and_shards(tmp_path, name):
    images = make(tmp_path / name / "images", "a.png", "b.png")
    assert len(files_of(images)) == 2
    (images / "metadata.csv").write_text("file_name,label\na.png,4\nb.png,2\n")
    source = load_source(DataConfig(path=str(images)))
    assert [source.label(0), source.label(1)] == [4, 2]
    shards = tmp_path / name / "shards"
    shards.mkdir()
    for split, count in (("train", 3), ("test", 2)):
        records = [{"bytes": PNG.getvalue(), "path": None}] * count
        features = Features({"image": ImageFeature()})
        Dataset.from_dict({"image": records}, features=features).to_parquet(shards / f"{split}.parquet")
    assert len(load_source(DataConfig(path=str(shards)))) == 3
    assert len(load_source(DataConfig(path=str(shards)), "test")) == 2
    assert len(load_source(DataConfig(path=str(shards / "test.parquet")))) == 2


def test_a_pipe_that_is_called_like_an_image_is_not_waited_for(tmp_path, caplog):
    make(tmp_path, "0.png", "1.png")
    os.mkfifo(tmp_path / "pipe.png")
    os.symlink("pipe.png", tmp_path / "link.png")
    assert files_of(tmp_path) == ["0.png", "1.png"]
    assert "2 pipe(s) or device(s)" in caplog.text and "link.png" in caplog.text


# ---------------------------------------------------------------------------------------------- splits and classes


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *(("train", "train"), ("Training", "train"), ("train2017", "train"), ("images_train", "train")),
        *(("val", "validation"), ("VAL_2017", "validation"), ("valid", "validation"), ("dev", "validation")),
        *(("eval", "test"), ("Evaluation", "test"), ("evaluator", None)),
        *(("test_images", "test"), ("test1", "test"), ("testset", "test"), ("test-set", "test")),
        *(
            ("trains", None),
            ("contest", None),
            ("value", None),
            ("cats_train", None),
            ("device", None),
            ("2017", None),
        ),
    ],
)
def test_splits_are_known_by_the_usual_names(name, split):
    assert split_of(name) == split


def test_yolos_layout_is_splits_and_no_classes(tmp_path):
    make(tmp_path / "yolo", "images/train/0.png", "images/train/1.png", "images/val/2.png")
    (tmp_path / "yolo" / "labels" / "train").mkdir(parents=True)
    (tmp_path / "yolo" / "labels" / "train" / "0.txt").write_text("0 0.5 0.5 1 1")
    wanted = {
        "train": {"images/train/0.png": None, "images/train/1.png": None},
        "validation": {"images/val/2.png": None},
    }
    assert layout(tmp_path / "yolo") == wanted
    make(tmp_path / "roboflow", "train/images/0.png", "valid/images/1.png", "test/images/2.png")
    assert {k: len(v) for k, v in layout(tmp_path / "roboflow").items()} == {"train": 1, "validation": 1, "test": 1}
    assert all(label is None for part in layout(tmp_path / "roboflow").values() for label in part.values())


def test_cocos_layout_is_splits(tmp_path):
    make(tmp_path, "train2017/0.png", "val2017/1.png", "test2017/2.png")
    (tmp_path / "annotations").mkdir()
    assert {split: list(part.values()) for split, part in layout(tmp_path).items()} == {
        "train": [None],
        "validation": [None],
        "test": [None],
    }


def test_splits_are_found_inside_of_one_folder_and_inside_of_classes(tmp_path):
    make(tmp_path / "a", "photos/train/cat/0.png", "photos/train/dog/1.png", "photos/test/dog/2.png")
    wanted = {"train": {"photos/train/cat/0.png": "cat", "photos/train/dog/1.png": "dog"}}
    assert layout(tmp_path / "a") == wanted | {"test": {"photos/test/dog/2.png": "dog"}}
    make(tmp_path / "b", "cat/train/0.png", "cat/test/1.png", "dog/train/2.png", "dog/test/3.png")
    wanted = {"train": {"cat/train/0.png": "cat", "dog/train/2.png": "dog"}}
    assert layout(tmp_path / "b") == wanted | {"test": {"cat/test/1.png": "cat", "dog/test/3.png": "dog"}}


def test_flat_splits_beside_class_folders_are_splits_without_labels_and_said(tmp_path, caplog):
    for name in ("val", "test"):
        root = make(tmp_path / name, "cat/0.png", "dog/1.png", f"{name}/2.png", f"{name}/3.png")
        split = {"val": "validation", "test": "test"}[name]
        found = layout(root)
        assert found["train"] == {"cat/0.png": "cat", "dog/1.png": "dog"}
        assert found[split] == {f"{name}/2.png": None, f"{name}/3.png": None}
        assert f"2 image(s) of the split {split!r}" in caplog.text


def test_kaggles_imagenet_keeps_the_classes_of_train_where_val_and_test_are_flat(tmp_path, caplog):
    found = layout(make(tmp_path, "train/cat/0.png", "train/dog/1.png", "val/2.png", "test/3.png"))
    assert found["train"] == {"train/cat/0.png": "cat", "train/dog/1.png": "dog"}
    assert found["validation"] == {"val/2.png": None} and found["test"] == {"test/3.png": None}
    assert "'validation'" in caplog.text and "'test'" in caplog.text


def test_a_class_that_is_called_like_a_split_inside_of_another_folder_loses_no_images(tmp_path):
    found = layout(make(tmp_path, "car/0.png", "rail/train/1.png", "boat/2.png"))
    assert list(found) == ["train"] and len(found["train"]) == 3


def test_two_folders_of_one_split_are_one_split(tmp_path):
    assert len(files_of(make(tmp_path, "train2014/0.png", "train2017/1.png", "val2017/2.png"))) == 2


def test_files_beside_the_splits_are_counted(tmp_path, caplog):
    found = layout(make(tmp_path, "train/0.png", "test/1.png", "cover.png"))
    assert {split: len(part) for split, part in found.items()} == {"train": 1, "test": 1}
    assert "1 file(s)" in caplog.text and "cover.png" in caplog.text


# ---------------------------------------------------------------------------------------------- tables and leftovers


def test_images_that_the_metadata_do_not_name_are_counted_and_used(tmp_path, caplog):
    make(tmp_path, *(f"{i}.png" for i in range(6)))
    rows = "".join(f"{i}.png,{i % 2}\n" for i in range(4)) + "gone.png,1\n"
    (tmp_path / "metadata.csv").write_text("file_name,label\n" + rows)
    source = load_source(DataConfig(path=str(tmp_path)))
    assert [source.label(i) for i in range(len(source))] == [0, 1, 0, 1, None, None]
    assert "2 of 6 images" in caplog.text and "1 image(s) that do not exist" in caplog.text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.csv", b""),
        ("metadata.csv", b"file_name,label\n0.png,caf\xe9\n"),
        ("metadata.jsonl", b"{oops\n"),
        ("metadata.parquet", b"PAR1"),
    ],
)
def test_metadata_that_cannot_be_read_are_named(tmp_path, name, content):
    make(tmp_path, "0.png", "1.png")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RecipeError, match=rf"^{re.escape(str(tmp_path / name))} cannot be read.* remove it") as caught:
        load_source(DataConfig(path=str(tmp_path)))
    assert "\n" not in str(caught.value)


def test_metadata_whose_columns_differ_in_type_say_so(tmp_path):
    for split, label in (("train", "1"), ("test", "cat")):
        make(tmp_path, f"{split}/a.png")
        (tmp_path / split / "metadata.csv").write_text(f"file_name,label\na.png,{label}\n")
    with pytest.raises(RecipeError, match="do not match .*label.*use the same column types in all"):
        load_source(DataConfig(path=str(tmp_path)))


def test_several_rows_of_one_file_are_said(tmp_path, caplog):
    make(tmp_path, "a.png", "b.png")
    (tmp_path / "metadata.csv").write_text("file_name,label\na.png,1\na.png,2\na.png,3\nb.png,4\n")
    source = load_source(DataConfig(path=str(tmp_path)))
    assert [source.label(0), source.label(1)] == [3, 4]
    assert "2 more rows than files; the last row of each file is used" in caplog.text


def test_a_column_of_splits_is_said(tmp_path, caplog):
    make(tmp_path, "a.png", "b.png")
    (tmp_path / "metadata.csv").write_text("file_name,label,split\na.png,1,train\nb.png,2,test\n")
    assert len(load_source(DataConfig(path=str(tmp_path)))) == 2
    assert "does not define splits; put the images into folders" in caplog.text


def test_metadata_of_each_split_and_in_lines_of_json_are_read(tmp_path):
    make(tmp_path, "train/a.png", "train/sub/b.png", "test/c.png")
    (tmp_path / "train" / "metadata.csv").write_text("file_name,label\nsub/b.png,7\na.png,5\n")
    (tmp_path / "test" / "metadata.jsonl").write_text('{"file_name": "c.png", "label": 3}\n')
    data = DataConfig(path=str(tmp_path))
    train, test = load_source(data), load_source(data, "test")
    assert [train.label(0), train.label(1), test.label(0)] == [5, 7, 3]


def test_a_table_that_names_no_files_and_a_text_are_no_metadata(tmp_path, caplog):
    make(tmp_path, "a/0.png", "b/1.png")
    (tmp_path / "metadata.txt").write_text("taken in 2024")
    (tmp_path / "metadata.csv").write_text("filename,breed\n0.png,1\n")
    assert layout(tmp_path) == {"train": {"a/0.png": "a", "b/1.png": "b"}}
    assert "no column file_name" in caplog.text


@pytest.mark.parametrize("leftover", ["embeddings.parquet", "backup.tar", "broken.parquet", "broken.tar", "empty.tar"])
def test_a_shard_without_images_is_a_leftover_in_a_folder_of_images(tmp_path, caplog, leftover):
    make(tmp_path, "a/0.png", "b/1.png")
    if leftover == "embeddings.parquet":
        pq.write_table(pa.table({"id": [1, 2], "v": [0.1, 0.2]}), tmp_path / leftover)
    elif leftover == "backup.tar":
        with tarfile.open(tmp_path / leftover, "w") as tar:
            tar.addfile(tarfile.TarInfo("notes.txt"))
    else:
        (tmp_path / leftover).write_bytes(b"" if "empty" in leftover else b"nothing")
    assert layout(tmp_path) == {"train": {"a/0.png": "a", "b/1.png": "b"}}
    assert "1 Parquet or tar file(s)" in caplog.text


def test_shards_with_images_are_read_and_the_pictures_of_their_readme_are_counted(tmp_path, caplog):
    make(tmp_path, "assets/banner.png", "assets/logo.png")
    records = {"image": [{"bytes": PNG.getvalue(), "path": None}] * 5}
    Dataset.from_dict(records, features=Features({"image": ImageFeature()})).to_parquet(tmp_path / "train.parquet")
    assert len(load_source(DataConfig(path=str(tmp_path)))) == 5
    assert "1 shard(s)" in caplog.text and "2 other file(s)" in caplog.text


def test_a_folder_without_images_says_what_is_there(tmp_path):
    for i in range(9):
        (tmp_path / f"{i}.heic").write_bytes(b"x")
    with pytest.raises(RecipeError, match="no readable images.*9 .heic"):
        load_source(DataConfig(path=str(tmp_path)))
