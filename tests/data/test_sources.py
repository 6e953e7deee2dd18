# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Every kind of image source, and the error messages for missing ones."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, load_dataset
from datasets import Image as ImageFeature
from PIL import Image

from hf_ssl.data.bank import labeled_sources
from hf_ssl.data.sources import available_splits, check_source, load_source
from hf_ssl.recipe import DataConfig, MonitorConfig, RecipeError
from tests.data.pictures import encoded
from tests.sources import ImageSource


def draw(path: Path, shade: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (shade, 100, 200)).save(path)
    return path


def labels(source: ImageSource) -> list[int | None]:
    return [source.label(i) for i in range(len(source))]


def folder_of_classes(root: Path, per_class: int = 3) -> Path:
    for label in ("cat", "dog"):
        for i in range(per_class):
            draw(root / label / f"{i}.png", i)
    return root


# ---------------------------------------------------------------------------------------------- folders


def test_a_folder_of_images_is_one_split_without_labels(tmp_path):
    for name in ("b.jpg", "a.PNG", "deep/er/c.webp"):
        draw(tmp_path / "my pics [1]" / name)
    (tmp_path / "my pics [1]" / "notes.txt").write_text("not an image")
    draw(tmp_path / "my pics [1]" / ".hidden.png")
    source = load_source(DataConfig(path=str(tmp_path / "my pics [1]")))
    assert [Path(source.name(i)).name for i in range(len(source))] == ["a.PNG", "b.jpg", "c.webp"]
    assert source.image(0).size == (12, 10) and source.label(0) is None


def test_a_relative_folder_and_one_under_home_are_found(tmp_path, monkeypatch):
    draw(tmp_path / "photos" / "a.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in ("photos", "./photos", "~/photos"):
        assert len(load_source(DataConfig(path=path))) == 1


def test_class_folders_are_labels(tmp_path):
    source = load_source(DataConfig(path=str(folder_of_classes(tmp_path))))
    assert labels(source) == [0, 0, 0, 1, 1, 1]


def test_train_and_validation_folders_are_splits_and_so_is_what_stands_beside_them(tmp_path):
    folder_of_classes(tmp_path / "train")
    draw(tmp_path / "val" / "dog" / "x.png")
    draw(tmp_path / "extra" / "more.png")
    data = DataConfig(path=str(tmp_path))
    assert set(available_splits(data)) == {"train", "validation", "extra"}
    assert len(load_source(data, "validation")) == len(load_source(data, "extra")) == 1


def test_every_split_of_a_labeled_folder_has_the_same_class_numbers(tmp_path):
    folder_of_classes(tmp_path / "train")
    draw(tmp_path / "test" / "dog" / "x.png")
    data = DataConfig(path=str(tmp_path))
    assert labels(load_source(data)) == [0, 0, 0, 1, 1, 1] and labels(load_source(data, "test")) == [1]


def test_a_class_that_is_called_like_a_split_stays_a_class(tmp_path):
    for label in ("bicycle", "test", "train"):
        draw(tmp_path / label / "0.png")
    assert labels(load_source(DataConfig(path=str(tmp_path)))) == [0, 1, 2]


def test_files_that_stand_in_the_splits_themselves_have_no_class(tmp_path):
    for split in ("train", "test"):
        for i in range(2):
            draw(tmp_path / split / f"{i}.png")
    data = DataConfig(path=str(tmp_path))
    assert len(load_source(data)) == len(load_source(data, "test")) == 2
    assert labels(load_source(data)) == [None, None], "not the name of the split"


def test_broken_files_are_met_only_when_they_are_decoded(tmp_path):
    folder_of_classes(tmp_path)
    for name, content in (("0.png", b""), ("1.png", b"no image")):
        (tmp_path / "cat" / name).write_bytes(content)
    source = load_source(DataConfig(path=str(tmp_path)))
    assert len(source) == 6
    for i in range(2):
        with pytest.raises(OSError):
            source.image(i)
    assert source.image(2).size == (12, 10)


def test_a_folder_with_metadata_is_read_by_datasets(tmp_path):
    draw(tmp_path / "a.png")
    draw(tmp_path / "b.png")
    (tmp_path / "metadata.csv").write_text("file_name,label\na.png,4\nb.png,2\n")
    assert labels(load_source(DataConfig(path=str(tmp_path)))) == [4, 2]


# ---------------------------------------------------------------------------------------------- Parquet, saved, object


def test_parquet_is_found_as_a_file_a_folder_and_a_glob(digits):
    file = load_source(DataConfig(path=str(digits / "test.parquet")))
    folder = load_source(DataConfig(path=str(digits)), "test")
    both = load_source(DataConfig(path=str(digits / "*.parquet")))
    assert len(file) == len(folder) == 64 and len(both) == 192
    assert labels(file) == labels(folder)
    assert np.array_equal(np.asarray(file.image(5)), np.asarray(folder.image(5)))
    assert file.name(5) == "row 5 of train"


def test_parquet_that_datasets_did_not_write_needs_no_types(tmp_path):
    content = encoded(Image.new("RGB", (12, 10)))
    pq.write_table(pa.table({"photo": [{"bytes": content, "path": "a.png"}]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"png": [content], "other": [b"x"]}), tmp_path / "b.parquet")
    source = load_source(DataConfig(path=str(tmp_path / "a.parquet")))
    assert source.image(0).size == (12, 10) and source.name(0) == "a.png (row 0 of train)"
    assert load_source(DataConfig(path=str(tmp_path / "b.parquet"), image_column="png")).image(0).size == (12, 10)


def test_what_datasets_saved_is_loaded_with_its_splits(tmp_path, digits):
    test = load_dataset("parquet", data_files=str(digits / "test.parquet"), split="train")
    test.save_to_disk(tmp_path / "one")
    DatasetDict({"train": test, "val": test.select(range(5))}).save_to_disk(tmp_path / "two")
    assert len(load_source(DataConfig(path=str(tmp_path / "one")))) == 64
    assert len(load_source(DataConfig(path=str(tmp_path / "two")), "val")) == 5


def test_only_the_first_examples_are_taken_if_so_asked(digits):
    assert len(load_source(DataConfig(path=str(digits), max_examples=10))) == 10
    assert len(load_source(DataConfig(path=str(digits), max_examples=1000))) == 128


def test_any_map_style_dataset_object_is_a_source_whatever_its_format(digits):
    dataset = load_dataset("parquet", data_files=str(digits / "test.parquet"), split="train")
    plain = ImageSource(dataset)
    for changed in (dataset.with_format("torch"), dataset.with_transform(lambda rows: {"nothing": rows["label"]})):
        source = ImageSource(changed)
        assert source.label(3) == plain.label(3) and source.image(3).tobytes() == plain.image(3).tobytes()
    shuffled = ImageSource(dataset.shuffle(seed=0).select(range(3)))
    assert len(shuffled) == 3 and shuffled.image(0).size == (32, 32)
    for wrong in (DatasetDict({"train": dataset}), dataset.to_iterable_dataset()):
        with pytest.raises(RecipeError, match="one split, not streamed"):
            ImageSource(wrong)


def test_columns_are_found_by_type_and_by_name(digits):
    dataset = load_dataset("parquet", data_files=str(digits / "test.parquet"), split="train")
    renamed = dataset.rename_columns({"image": "photo", "label": "kind"}).add_column("id", list(range(64)))
    source = ImageSource(renamed)
    assert (source.image_column, source.label_column) == ("photo", "kind")
    assert ImageSource(renamed, label_column="id").label(5) == 5
    numbered = dataset.cast_column("label", Value("int32"))
    assert ImageSource(numbered).label_column == "label"
    assert ImageSource(numbered.rename_column("label", "kind")).label_column is None


# ---------------------------------------------------------------------------------------------- error messages


def said(call, *args, **kwargs) -> str:
    with pytest.raises(RecipeError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_missing_is_named_with_what_is_near(digits, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    data = DataConfig(path=str(digits))
    assert "no split 'tset'; did you mean test" in said(check_source, data, "tset")
    data = replace(data, image_column="imag")
    assert "no column 'imag'; did you mean image" in said(check_source, data)
    data = replace(data, image_column="label")
    assert "'label'" in said(check_source, data) and "image" in said(check_source, data)
    data = replace(data, image_column=None, label_column="lable")
    assert "no column 'lable'; did you mean label" in said(check_source, data)
    data = replace(data, label_column="image")
    assert "does not hold class numbers" in said(check_source, data)
    assert "set data.path" in said(check_source, DataConfig())


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("some/photos", "data.path=some/photos: no such folder"),
        ("./photos", "data.path=./photos does not exist"),
        ("/no/such/place/at/all", "does not exist"),
        ("missing.parquet", "No file matches"),
        ("*.parquet", "No file matches"),
        ("photo.png", "data.path=photo.png is a single image; pass its folder"),
        ("empty", "data.path=empty could not be loaded"),
    ],
)
def test_a_place_without_images_is_one_sentence(tmp_path, monkeypatch, path, text):
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "photo.png")
    (tmp_path / "empty").mkdir()
    assert text in said(check_source, DataConfig(path=path))


def test_several_image_columns_must_be_chosen_from():
    features = Features({"left": ImageFeature(), "right": ImageFeature(), "n": Value("int64")})
    dataset = Dataset.from_dict({"left": [], "right": [], "n": []}, features=features)
    assert "set data.image_column to one of left, right" in said(ImageSource, dataset)
    assert ImageSource(dataset, image_column="right").image_column == "right"
    assert "no image column" in said(ImageSource, dataset.select_columns(["n"]))


def test_checking_converts_nothing(digits, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cache)
    check_source(DataConfig(path=str(digits)))
    assert not list(cache.rglob("*.arrow"))


# ---------------------------------------------------------------------------------------------- kNN


def test_sounds_of_a_table_need_no_decoder(tmp_path):
    for split, rows in (
        ("train", "file_name,fold,target\na/x.wav,1,3\ny.wav,2,5\n"),
        ("test", "file_name,target\nz.wav,4\n"),
    ):
        (tmp_path / split).mkdir()
        (tmp_path / split / "metadata.csv").write_text(rows)
    train = load_source(DataConfig(path=str(tmp_path), label_column="target"), "train", "audio")
    assert labels(train) == [3, 5]
    assert train.record(0)["path"] == str(tmp_path / "train/a/x.wav")
    assert labels(load_source(DataConfig(path=str(tmp_path), label_column="target"), "test", "audio")) == [4]


def test_the_monitor_uses_the_labeled_splits(digits):
    bank, queries = labeled_sources(DataConfig(path=str(digits)), MonitorConfig())
    assert (len(bank), len(queries)) == (128, 64)


def test_validation_stands_in_for_a_test_split_that_is_missing_or_secret(tmp_path):
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["a", "b"])})
    image = Image.new("RGB", (4, 4))

    def split(n: int, label: int) -> Dataset:
        return Dataset.from_dict({"image": [image] * n, "label": [label] * n}, features=features)

    splits = {"train": split(10, 1), "validation": split(4, 1)}
    for name, more in (("missing", {}), ("secret", {"test": split(6, -1)})):
        DatasetDict(splits | more).save_to_disk(tmp_path / name)
        bank, queries = labeled_sources(DataConfig(path=str(tmp_path / name)), MonitorConfig())
        assert (len(bank), len(queries)) == (10, 4)


def test_every_fifth_labeled_image_is_a_query_where_no_split_is(tmp_path):
    bank, queries = labeled_sources(DataConfig(path=str(folder_of_classes(tmp_path, 5))), MonitorConfig())
    assert (len(bank), len(queries)) == (8, 2)
    assert not {bank.name(i) for i in range(8)} & {queries.name(i) for i in range(2)}
    assert [queries.label(i) for i in range(2)] == [0, 1]


def test_what_has_no_labels_has_no_knn_unless_it_was_asked_for(tmp_path):
    draw(tmp_path / "a.png")
    plain = DataConfig(path=str(tmp_path))
    assert labeled_sources(plain, MonitorConfig()) == (None, None)
    assert "no labels for kNN" in said(labeled_sources, DataConfig(), MonitorConfig(path=str(tmp_path)))
    assert "no column 'kind'" in said(labeled_sources, plain, MonitorConfig(label_column="kind"))


def test_another_labeled_dataset_can_be_the_monitors(tmp_path, digits):
    draw(tmp_path / "a.png")
    monitor = MonitorConfig(path=str(digits), query_split="train", bank_split="test")
    bank, queries = labeled_sources(DataConfig(path=str(tmp_path), image_column="elsewhere"), monitor)
    assert (len(bank), len(queries)) == (64, 128)
    assert "no split 'tran'" in said(labeled_sources, DataConfig(), MonitorConfig(path=str(digits), bank_split="tran"))
