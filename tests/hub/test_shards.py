# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Sharded checkpoints are read whole; entries that are not tensors are neither executed nor trusted."""

import io
import os
import pickle
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from hf_ssl.hub.shards import SafeReader, read_shards
from hf_ssl.hub.weights import read_weights
from hf_ssl.recipe import RecipeError


RUNS = Path(__file__).parents[1] / "fixtures" / "runs_1c0e32c.tar.xz"


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """A checkpoint sharded over two processes with torch 2.14."""
    folder = tmp_path_factory.mktemp("runs")
    with tarfile.open(RUNS) as archive:
        archive.extractall(folder, filter="data")
    return folder / "sharded/checkpoints/step_00000004"


@pytest.fixture
def shards(original, tmp_path) -> Path:
    return shutil.copytree(original, tmp_path / "step_00000004") / "shards"


class Bomb:
    def __init__(self, place: Path):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


def edited(shards: Path, change) -> Path:
    """The folder after `change(metadata)` on its index."""
    metadata = dcp.FileSystemReader(shards).read_metadata()
    change(metadata)
    (shards / ".metadata").write_bytes(pickle.dumps(metadata))
    return shards


def first_tensor(metadata):
    return metadata.state_dict_metadata["model.encoder.backbone.conv1.0.weight"]


def test_a_sharded_checkpoint_is_read_as_torch_reads_it(shards):
    saved = dcp.FileSystemReader(shards).read_metadata()
    assert SafeReader(shards).read_metadata().state_dict_metadata == saved.state_dict_metadata
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in saved.state_dict_metadata.items()
        if name.startswith("model.")
    }
    dcp.load(tensors, checkpoint_id=shards, no_dist=True)
    ours = read_shards(shards)
    assert ours.keys() == {name.removeprefix("model.") for name in tensors}
    assert all(torch.equal(ours[name.removeprefix("model.")], tensor) for name, tensor in tensors.items())
    assert read_weights(shards.parent).keys() == ours.keys()


@pytest.mark.parametrize("where", ["instead", "planner_data", "state_dict_metadata", "storage_data", "storage_meta"])
def test_what_an_index_would_execute_is_refused_by_name(shards, tmp_path, where):
    bomb = Bomb(tmp_path / "executed")
    if where == "instead":
        (shards / ".metadata").write_bytes(pickle.dumps(bomb))
    else:
        edited(shards, lambda m: setattr(m, where, {"x": bomb}))
    for read in (read_shards, lambda folder: SafeReader(folder).read_metadata()):
        with pytest.raises(pickle.UnpicklingError, match="posix.mkdir"):
            read(shards)
    with pytest.raises(RecipeError, match="posix.mkdir"):
        read_weights(shards.parent)
    assert not (tmp_path / "executed").exists()


def test_entries_that_are_no_tensors_are_refused(shards):
    edited(shards, lambda m: m.state_dict_metadata.update({"model.x": BytesStorageMetadata()}))
    with pytest.raises(pickle.UnpicklingError, match=r"model\.x is not a tensor"):
        read_shards(shards)


def test_a_pickle_among_the_shards_is_not_executed(shards, tmp_path):
    class Tensors(Bomb):
        pass

    file = io.BytesIO()
    torch.save(Tensors(tmp_path / "executed"), file)
    for shard in shards.glob("*.distcp"):
        content = shard.read_bytes()
        shard.write_bytes((file.getvalue() + content)[: len(content)])
    with pytest.raises(RecipeError, match="cannot be read"):
        read_weights(shards.parent)

    def point_at_it(metadata):
        for place in metadata.storage_data.values():
            place.offset, place.length = 0, len(file.getvalue())

    with pytest.raises(RecipeError, match="cannot be read"):
        read_weights(edited(shards, point_at_it).parent)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["../secret.distcp", "/etc/hostname", "absent.distcp", "", "."])
def test_an_index_names_only_files_of_its_folder(shards, name):
    shutil.copy(shards / "__0_0.distcp", shards.parent / "secret.distcp")

    def rename(metadata):
        for place in metadata.storage_data.values():
            place.relative_path = name

    with pytest.raises(pickle.UnpicklingError, match="is outside the bytes of"):
        read_shards(edited(shards, rename))


def test_tensors_larger_than_the_files_are_refused_before_they_take_memory(shards):
    def grow(metadata):
        entry = first_tensor(metadata)
        entry.size = torch.Size([10**9, 10**6])
        entry.chunks[:] = [type(entry.chunks[0])(torch.Size([0, 0]), entry.size)]

    with pytest.raises(pickle.UnpicklingError, match="declares 4,000,000,000,"):
        read_shards(edited(shards, grow))


def test_a_tensor_of_which_a_part_is_missing_is_refused(shards):
    with pytest.raises(pickle.UnpicklingError, match=r"parts of its entry .* are missing"):
        read_shards(edited(shards, lambda m: first_tensor(m).chunks.pop()))


def test_a_compressed_shard_is_refused(shards):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**7))
    (shards / "__0_0.distcp").write_bytes(packed.getvalue() + (shards / "__0_0.distcp").read_bytes())

    def point_at_it(metadata):
        for place in metadata.storage_data.values():
            place.relative_path, place.offset, place.length = "__0_0.distcp", 0, len(packed.getvalue())

    with pytest.raises(pickle.UnpicklingError, match="is compressed"):
        read_shards(edited(shards, point_at_it))


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 100, b"text", b"\x80\x04N.", b"\x80\x04r\xff\xff\xff\xff.", b"\x80\x04\x96" + b"\xff" * 8 + b"."],
    ids=["empty", "zeros", "text", "nothing", "memo of gigabytes", "array of gigabytes"],
)
def test_an_index_of_another_kind_is_an_error_of_reading(shards, content):
    (shards / ".metadata").write_bytes(content)
    with pytest.raises(pickle.UnpicklingError):
        read_shards(shards)
    (shards / ".metadata").unlink()
    with pytest.raises(RecipeError, match="cannot be read"):
        read_weights(shards.parent)


def test_a_flipped_or_cut_index_never_ends_in_anything_else(shards):
    content, generator = (shards / ".metadata").read_bytes(), torch.Generator().manual_seed(0)
    for place in torch.randint(0, len(content), (12,), generator=generator).tolist():
        (shards / ".metadata").write_bytes(content[:place])
        with pytest.raises(pickle.UnpicklingError):
            SafeReader(shards).read_metadata()
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        (shards / ".metadata").write_bytes(flipped)
        try:
            SafeReader(shards).read_metadata()
        except pickle.UnpicklingError:
            continue
