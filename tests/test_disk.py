# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Files and folders are as before or as given, wherever a process is killed."""

import errno
import os

import pytest
import torch
from safetensors.torch import save_file

from hf_ssl import disk


class Killed(BaseException):
    pass


def folder(path, text):
    path.mkdir()
    (path / "weights").write_text(text)
    return path


def test_weights_are_as_readable_as_their_folder(tmp_path):
    for mode in (0o755, 0o700):
        folder = tmp_path / oct(mode)
        folder.mkdir()
        folder.chmod(mode)
        save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
        disk.flush(folder / "model.safetensors")
        assert (folder / "model.safetensors").stat().st_mode & 0o777 == mode & 0o666


@pytest.mark.parametrize("exchange", [True, False], ids=["in one step", "two renames"])
@pytest.mark.parametrize("after", range(6))
def test_a_folder_is_the_whole_old_or_the_whole_new_one(tmp_path, monkeypatch, exchange, after):
    old, new = folder(tmp_path / "model", "old"), folder(tmp_path / "new", "new")
    if exchange and not disk._exchange(folder(tmp_path / "a", ""), folder(tmp_path / "b", "")):
        pytest.skip("the file system exchanges nothing")
    calls = []

    def killed_after(name, real):
        def call(*args, **kwargs):
            calls.append(name)
            if len(calls) > after:
                raise Killed
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(disk, "_exchange", killed_after("exchange", disk._exchange) if exchange else lambda *_: False)
        for module, name in ((disk.os, "replace"), (disk.shutil, "rmtree"), (disk, "flush")):
            patch.setattr(module, name, killed_after(name, getattr(module, name)))
        try:
            disk.replace_folder(new, old)
        except Killed:
            pass
    if exchange:
        assert (old / "weights").read_text() in ("old", "new")
    disk.recover_folder(old)
    assert (old / "weights").read_text() in ("old", "new")
    if len(calls) <= after:
        assert (old / "weights").read_text() == "new" and sorted(os.listdir(tmp_path))[-1] == "model"


def test_a_text_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "recipe.yaml"
    disk.atomic_write(path, "before")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk, "flush", full)
    with pytest.raises(OSError, match="No space"):
        disk.atomic_write(path, "after")
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["recipe.yaml"]


def test_digests_name_what_was_changed_and_do_not_follow_names_out_of_the_folder(tmp_path):
    place = folder(tmp_path / "checkpoint", "weights")
    digests = disk.digests_of(place, disk.files_below(place))
    assert disk.first_damage(place, digests) is None
    assert "missing" in disk.first_damage(place, {**digests, "../secret": "0"})
    (place / "weights").write_text("Weights")
    assert "weights has been changed" in disk.first_damage(place, digests)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"),
        RuntimeError("[enforce fail at inline_container.cc:858] . PytorchStreamWriter failed writing file data/1"),
        RuntimeError("Parent directory x does not exist."),
    ],
)
def test_refused_writes_are_told_from_other_failures(error):
    assert disk.refused_write(error) is not None
    assert disk.refused_write(TypeError("a mistake in the code")) is None
    wrapped = RuntimeError("wrapped")
    wrapped.__cause__ = error
    assert disk.refused_write(wrapped) is not None
