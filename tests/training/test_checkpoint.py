# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints are complete or absent."""

import errno
import json

import pytest
import torch
from accelerate import Accelerator

from hf_ssl.checkpoint_folder import RunState
from hf_ssl.recipe import RecipeError
from hf_ssl.training import checkpoint as module
from hf_ssl.training.checkpoint import Checkpoints


@pytest.fixture
def parts(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(5, 3)).square().sum().backward()
    optimizer.step()
    return Checkpoints(tmp_path / "checkpoints", 2, Accelerator(cpu=True)), model, optimizer


def save(parts, step, **state):
    checkpoints, model, optimizer = parts
    return checkpoints.save(step, model, optimizer, RunState(step, {}, **state))


def load(parts):
    """The state of the checkpoint that was loaded, or None."""
    checkpoints, model, optimizer = parts
    found = checkpoints.newest()
    return found and checkpoints.load(found, model, optimizer)[0].state


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_what_was_saved_is_loaded(parts):
    checkpoints, model, optimizer = parts
    torch.manual_seed(3)
    assert save(parts, 7)
    expected = torch.rand(4), {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(9)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    optimizer.state.clear()
    assert load(parts).step == 7
    assert torch.rand(4).equal(expected[0])
    assert all(model.state_dict()[k].equal(v) for k, v in expected[1].items())
    assert len(optimizer.state) == 4


def test_only_the_newest_are_kept(parts):
    checkpoints, model, optimizer = parts
    for step in (1, 2, 3):
        save(parts, step)
    assert [p.name for p in checkpoints.complete()] == ["step_00000002", "step_00000003"]


@pytest.mark.parametrize("broken", ["save_file", "torch.save", "state.json"])
def test_a_full_disk_keeps_the_last_good_checkpoint_and_says_so(parts, monkeypatch, caplog, broken):
    checkpoints, model, optimizer = parts
    assert save(parts, 1)
    if broken == "save_file":
        monkeypatch.setattr(module, "save_file", full_disk)
    elif broken == "torch.save":
        monkeypatch.setattr(module.torch, "save", full_disk)
    else:
        monkeypatch.setattr(json, "dumps", full_disk)
    assert not save(parts, 2)
    monkeypatch.undo()
    assert [p.name for p in checkpoints.folder.iterdir()] == ["step_00000001"]
    assert "No space left" in caplog.text and "step_00000001" in caplog.text
    assert load(parts).step == 1
    assert save(parts, 2)


def test_what_a_kill_left_half_written_is_not_taken_for_a_checkpoint(parts):
    checkpoints, model, optimizer = parts
    save(parts, 1)
    partial = checkpoints.folder / ".partial_step_00000002"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"half")
    assert load(parts).step == 1
    assert not partial.exists()


DAMAGE = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "one bit": lambda content: content[:-9] + bytes([content[-9] ^ 4]) + content[-8:],
    "zeros": lambda content: bytes(len(content)),
    "text": lambda content: b"<html>502 Bad Gateway</html>",
    "missing": None,
}


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "rank_0.pt", "state.json", "digests.json"])
@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_taken(parts, caplog, name, how):
    checkpoints, model, _ = parts
    save(parts, 1)
    expected = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with torch.no_grad():
        model[0].weight.add_(1)
    save(parts, 2)
    file = checkpoints.complete()[-1] / name
    if DAMAGE[how] is None:
        file.unlink()
    else:
        file.write_bytes(DAMAGE[how](file.read_bytes()))
    assert load(parts).step == 1
    assert all(tensor.equal(expected[key]) for key, tensor in model.state_dict().items())
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["damaged_step_00000002", "step_00000001"]
    assert name in caplog.text and "damaged_step_00000002" in caplog.text
    assert save(parts, 2) and load(parts).step == 2


def test_a_folder_that_is_no_checkpoint_does_not_block_the_start(parts):
    save(parts, 1)
    (parts[0].folder / "step_00000099").mkdir()
    assert load(parts).step == 1


def test_where_only_damaged_checkpoints_are_left_nothing_starts_anew(parts):
    checkpoints, *_ = parts
    save(parts, 1)
    (checkpoints.complete()[-1] / "state.json").write_text(json.dumps({"recipe": {}})[:5])
    for _ in range(2):
        with pytest.raises(RecipeError, match="step_00000001.*delete it"):
            load(parts)


def test_a_checkpoint_without_digests_is_taken_where_its_format_had_none(parts):
    checkpoints, *_ = parts
    save(parts, 1)
    path = checkpoints.complete()[-1]
    state = json.loads((path / "state.json").read_text())
    del state["format"]
    (path / "state.json").write_text(json.dumps(state))
    (path / "digests.json").unlink()
    assert load(parts).step == 1


def test_a_checkpoint_of_a_later_version_is_refused(parts):
    save(parts, 1, format=99)
    with pytest.raises(RecipeError, match="later version"):
        load(parts)


def test_weights_that_are_not_finite_are_never_continued(parts, caplog):
    _, model, _ = parts
    save(parts, 1)
    with torch.no_grad():
        model[1].running_var[0] = float("nan")
    save(parts, 2)
    assert load(parts).step == 1
    assert "not finite" in caplog.text


def test_milestones_stay(parts):
    checkpoints, *_ = parts
    checkpoints.keep_every = 3
    for step in range(1, 9):
        save(parts, step)
    assert [int(path.name[5:]) for path in checkpoints.complete()] == [3, 6, 7, 8]


def test_a_pickle_in_a_checkpoint_is_not_executed(parts, tmp_path):
    checkpoints, model, optimizer = parts
    save(parts, 1)

    class Malicious:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    torch.save(Malicious(), checkpoints.complete()[-1] / "optimizer.pt")
    with pytest.raises(Exception):  # noqa: B017
        load(parts)
    assert not (tmp_path / "executed").exists()
