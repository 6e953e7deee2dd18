# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Real-world tar shards."""

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from hf_ssl.data.loader import TrainLoader
from hf_ssl.data.sources import load_source
from hf_ssl.data.streams import open_stream
from hf_ssl.data.views import resolve_views
from hf_ssl.recipe import DataConfig, RecipeError, ViewsConfig
from tests.data.pictures import encoded, gray


def picture(shade: int, kind: str = "PNG") -> bytes:
    return encoded(gray(shade), kind)


def write(path: Path, *members: tuple[str, bytes], compress: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, f"w:{compress}") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def numbered(name: str, count: int = 24, kind: str = "PNG", start: int = 0) -> list[tuple[str, bytes]]:
    return [(name.format(i), picture(i, kind)) for i in range(start, start + count)]


def shades(source) -> list[int]:
    return [source.image(i).convert("RGB").getpixel((0, 0))[0] for i in range(len(source))]


SHARDS = {
    "jpg first and png later": [*numbered("{:04}.jpg"), *numbered("{:04}.png", start=24)],
    "jpg and png by turns": [
        one for i in range(24) for one in numbered(f"{i:04}.{'jpg' if i % 2 else 'png'}", 1, start=i)
    ],
    "dots in names": numbered("v1.{:04}.jpg"),
    "classes in names": numbered("cat.{}.jpg", 12) + numbered("dog.{}.jpg", 12, start=12),
    "dates in names": numbered("2024.05.01_{:04}.png"),
    "capitals": numbered("{:04}.JPG", kind="JPEG"),
    "macOS": [
        one for i in range(24) for one in ((f"._{i:04}.jpg", b"\0\5\26\7Mac OS X"), (f"{i:04}.jpg", picture(i)))
    ],
    "a readme first": [("README", b"hello"), ("LICENSE.txt", b"free"), *numbered("cat/img {}.jpeg", kind="JPEG")],
    "captions": [one for i in range(24) for one in ((f"{i:04}.webp", picture(i, "WEBP")), (f"{i:04}.txt", b"a cat"))],
    "broken json": [one for i in range(24) for one in ((f"{i:04}.png", picture(i)), (f"{i:04}.json", b"{"))],
    "labels apart": [*numbered("{:04}.jpg"), *[(f"{i:04}.cls", b"1") for i in range(24)]],
    "two extensions": numbered("{:04}.img.tiff", kind="TIFF"),
    "folders of one name": [*numbered("a/{:04}.png"), *numbered("b/{:04}.png", start=24)],
}


@pytest.mark.parametrize("kind", SHARDS)
@pytest.mark.parametrize("streaming", [False, True])
def test_every_image_of_a_shard_is_an_example(kind, streaming, tmp_path):
    data = DataConfig(path=str(write(tmp_path / "a.tar", *SHARDS[kind])), streaming=streaming)
    count = sum(name.lower().endswith((".jpg", ".jpeg", ".png", ".webp", ".tiff")) for name, _ in SHARDS[kind])
    count -= 24 * (kind == "macOS")
    source = open_stream(data).head(100) if streaming else load_source(data)
    found = shades(source)
    assert len(found) == count and all(abs(a - b) <= 1 for a, b in zip(found, range(count), strict=True))


def test_shards_of_different_extensions_are_one_dataset(tmp_path):
    write(tmp_path / "train" / "a.tar", *numbered("{:04}.jpg"))
    write(tmp_path / "train" / "b.tar.gz", *numbered("{:04}.png", start=24), compress="gz")
    write(tmp_path / "test" / "c.TAR", *numbered("{:04}.bmp", 3, "BMP"))
    data = DataConfig(path=str(tmp_path))
    assert len(load_source(data)) == 48 and len(load_source(data, "test")) == 3
    assert len(open_stream(data).head(100)) == 48


def test_two_images_of_an_example_must_be_chosen_from(tmp_path):
    pairs = [one for i in range(6) for one in ((f"{i}.jpg", picture(i)), (f"{i}.seg.png", picture(100 + i)))]
    path = str(write(tmp_path / "a.tar", *pairs))
    with pytest.raises(RecipeError, match="several image columns \\(jpg, seg.png\\)"):
        load_source(DataConfig(path=path))
    assert shades(load_source(DataConfig(path=path, image_column="jpg"))) == list(range(6))
    assert shades(open_stream(DataConfig(path=path, image_column="seg.png")).head(9)) == list(range(100, 106))


@pytest.mark.parametrize("named", ["cls", None])
def test_class_numbers_are_labels_and_a_wrong_one_is_none(named, tmp_path):
    members = [
        one for i in range(4) for one in ((f"{i}.jpg", picture(i)), (f"{i}.cls", b"x" if i == 2 else str(i).encode()))
    ]
    source = load_source(DataConfig(path=str(write(tmp_path / "a.tar", *members)), label_column=named))
    assert [source.label(i) for i in range(4)] == [0, 1, None, 3]


def test_a_shard_that_was_written_again_is_read_again(tmp_path):
    data = DataConfig(path=str(write(tmp_path / "a.tar", *numbered("{}.png", 3))))
    assert shades(load_source(data)) == [0, 1, 2]
    write(tmp_path / "a.tar", *numbered("{}.png", 4, start=7))
    assert shades(load_source(data)) == [7, 8, 9, 10]


def test_a_shard_without_images_is_one_sentence(tmp_path):
    for content in ([("notes.txt", b"hello")], []):
        with pytest.raises(RecipeError, match="no image column"):
            load_source(DataConfig(path=str(write(tmp_path / "a.tar", *content))))


def broken_header(content: bytes) -> bytes:
    """Break the header checksum of the fourth member (each takes two blocks). The third may then be incomplete."""
    return content[: 3 * 1024 + 148] + b"99999999" + content[3 * 1024 + 156 :]


@pytest.mark.parametrize(
    "damage, whole",
    [(broken_header, 2), (lambda content: content[: 5 * 1024 + 600], 5), (lambda content: content[:-1000], None)],
    ids=["header", "cut in a member", "cut in the padding"],
)
def test_what_follows_damage_is_not_missing_without_a_word(damage, whole, tmp_path, no_waiting):
    content = write(tmp_path / "good.tar", *numbered("{:04}.png")).read_bytes()
    (tmp_path / "damaged").mkdir()
    path = tmp_path / "damaged" / "0.tar"
    path.write_bytes(damage(content))
    data = DataConfig(path=str(path.parent), label_column=None)
    if whole is None:  # the end mark is there; only zeros are missing
        assert len(load_source(data)) == 24
        return
    with pytest.raises(RecipeError, match=r"0\.tar: .*(damaged|unexpected end).*data.streaming=true"):
        load_source(data)
    source = open_stream(replace(data, streaming=True, num_examples=24))
    loader = TrainLoader(
        source, resolve_views(ViewsConfig(), "simsiam"), batch_size=4, num_steps=2, max_failed_share=1
    )
    skipped = [skip for batch in loader for skip in batch["skipped"]]
    assert skipped and all(name == str(path) and f"after {whole} examples" in reason for name, reason in skipped)


def test_a_shard_without_an_end_is_said(tmp_path, caplog):
    """From a killed writer, or a download truncated between two members."""
    content = write(tmp_path / "0.tar", *numbered("{:04}.png")).read_bytes()
    (tmp_path / "0.tar").write_bytes(content[: 8 * 1024])
    assert len(load_source(DataConfig(path=str(tmp_path), label_column=None))) == 8
    assert "has no end mark" in caplog.text
