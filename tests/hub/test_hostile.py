# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Untrusted folders and files: no command executes their content, or allocates memory that they only claim to need."""

import json
import pickle
import random
import re
import resource
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hf_ssl.cli import main
from tests.hub.test_shards import RUNS, Bomb


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    with tarfile.open(RUNS) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def place(runs, tmp_path, digits, monkeypatch) -> Path:
    """A working directory with the run `mapped`, of which only the checkpoint at step 8 is left, and its data."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(runs / "mapped", "mapped")
    shutil.rmtree("mapped/checkpoints/step_00000004")
    shutil.copytree(digits, "digits")
    return tmp_path


def commands(folder: str) -> dict[str, list[str]]:
    """All commands that read a run's or a model's folder."""
    small = "model.backbone_args={channels: [4, 4, 8, 8], stem_width: 4}"
    train = ["pretrain", "recipe.yaml", "train.output_dir=new", "train.steps=1", "data.num_workers=0", small]
    Path("recipe.yaml").write_text(
        "{method: barlow_twins, data: {path: digits}, views: {all: {size: 32}}, monitor: {every: 0, num_samples: 8},"
        " train: {batch_size: 32}, model: {backbone: resnet10t, projector_dims: [16, 16]}}"
    )
    return {
        "convert": ["convert", folder, "--to", "barlow_twins", "--output", "back.pth"],
        "weights": [*train, f"train.init_from={folder}"],
        "encoder": [*train, f"model.init_from={folder}"],
        "export": ["export", folder, "--output", "exported"],
        "torch": ["export", folder, "--torch", "--output", "encoder.pt2"],
        "card": ["card", folder, "--license", "mit"],
        "push": ["push", folder, "nobody/nothing"],
        "knn": ["evaluate", "knn", folder, "--data", "digits", "--num-workers", "0"],
    }


def run(arguments: list[str]) -> int:
    """Exit status of `hf-ssl`; any other exception is a traceback."""
    try:
        main(arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


@pytest.mark.parametrize("name", ["convert", "weights", "encoder", "export", "torch", "card", "knn"])
def test_every_command_reads_what_is_whole(place, capsys, name):
    status = run(commands("mapped" if name == "export" else "mapped/model")[name])
    if name == "convert":  # the files are fine, but the original has no such network
        assert status == 2 and "does not have these tensors" in capsys.readouterr().err
    else:
        assert status == 0


def every_pickle(folder: Path, bomb: Bomb) -> None:
    """Put a bomb in every file that is, or could be read as, a pickle."""
    names = ["pytorch_model.bin", "model.pt", "weights.pth", "training_args.bin", "original.pth", "optimizer.pt"]
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    for inside in folders:
        (inside / "shards").mkdir()
        for name in [*names, "rank_0.pt", "shards/.metadata", "shards/__0_0.distcp"]:
            with (inside / name).open("wb") as file:
                pickle.dump(bomb, file) if "metadata" in name else torch.save({"x": bomb}, file)


@pytest.mark.parametrize("what", ["model", "mapped", "checkpoint", "weights are gone"])
@pytest.mark.parametrize("name", ["convert", "weights", "encoder", "export", "torch", "card", "push", "knn"])
def test_no_command_executes_a_pickle_of_a_folder(place, what, name):
    every_pickle(place / "mapped", Bomb(place / "executed"))
    if what == "weights are gone":
        for file in (place / "mapped").rglob("*.safetensors"):
            file.unlink()
    folder = {"model": "mapped/model", "checkpoint": "mapped/checkpoints/step_00000008"}.get(what, "mapped")
    assert run(commands(folder)[name]) in (0, 2)
    assert not (place / "executed").exists()


def test_a_resumed_run_executes_no_pickle_of_its_checkpoints(runs, tmp_path, digits, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(digits, "digits")
    recipe = (runs / "mapped/recipe.yaml").read_text()
    for kind in ("mapped", "sharded"):
        shutil.copytree(runs / kind, kind)
        newest = sorted(Path(kind, "checkpoints").iterdir())[-1]
        bombs = [newest / "optimizer.pt", newest / "rank_0.pt", *(newest / "shards").glob("*.distcp")]
        bombs += list((newest / "shards").glob(".metadata"))
        for file in bombs:
            with file.open("wb") as out:
                pickle.dump(Bomb(tmp_path / "executed"), out)
        Path("recipe.yaml").write_text(recipe if kind == "mapped" else (runs / "sharded/recipe.yaml").read_text())
        assert run(["pretrain", "recipe.yaml", f"train.output_dir={kind}"]) in (0, 2)
        assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["convert", "weights", "encoder", "export", "torch", "card", "knn"])
def test_no_command_imports_the_code_of_a_folder(place, name):
    model = place / "mapped/model"
    bomb = f"import os\nos.mkdir({str(place / 'executed')!r})\nclass X: pass\n"
    for file in (*model.glob("*.py"), model / "bomb.py", model / "pretraining" / "bomb.py"):
        file.write_text(bomb)
    for config in (model / "config.json", model / "pretraining/config.json"):
        content = json.loads(config.read_text())
        classes = {f"Auto{kind}": "bomb.X" for kind in ("Config", "Model", "ModelForPreTraining", "ImageProcessor")}
        config.write_text(json.dumps(content | {"auto_map": classes}))
    assert run(commands("mapped/model")[name]) in (0, 2)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"model_type": "unknown_to_all"}))
    assert run(commands("mapped/model")[name]) in (0, 2)
    assert not (place / "executed").exists()


@pytest.mark.parametrize("key", ["checkpoint_path", "pretrained", "pretrained_cfg", "cache_dir"])
def test_a_configuration_names_no_other_weights_for_timm_to_load(place, capsys, key):
    with (place / "bomb.pth").open("wb") as file:
        torch.save(Bomb(place / "executed"), file)
    for config in (place / "mapped/model/config.json", place / "mapped/model/pretraining/config.json"):
        content = json.loads(config.read_text())
        field = "backbone_args" if "backbone" in content else "model_args"
        content[field] = (content.get(field) or {}) | {key: str(place / "bomb.pth")}
        config.write_text(json.dumps(content))
    for name in ("knn", "encoder", "torch", "convert", "card"):
        assert run(commands("mapped/model")[name]) == 2
        assert key in capsys.readouterr().err
    assert not (place / "executed").exists()


# ------------------------------------------------------------------------------------------ false claims of size


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/hostname", "", 7, None])
def test_an_index_names_only_files_of_its_own_folder(place, capsys, name):
    for folder in (place / "mapped/model", place / "mapped/model/pretraining"):
        shutil.copy(folder / "model.safetensors", folder.parent / "model.safetensors")
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    shutil.rmtree(place / "mapped/checkpoints")
    for command in ("knn", "encoder", "torch", "convert", "weights"):
        assert run(commands("mapped/model")[command]) == 2
        assert "must only name files in its own folder" in capsys.readouterr().err


ABSURD = {
    "timm": [
        {"pretrained_cfg": {"tag": "barlow_twins", "input_size": [3, 10**6, 10**6]}},
        {"model_args": {"channels": [10**9, 4, 8, 8]}},
        {"model_args": {"layers": [10**9, 1, 1, 1]}},
        {"model_args": {"stem_width": 100_000}},
        {"architecture": "vit_giant_patch14_dinov2", "model_args": None},
        {"architecture": "local-dir:/tmp"},
    ],
    "pretraining": [
        {"image_size": 10**9},
        {"image_size": float("nan")},
        {"projector_dims": [10**9, 10**9]},
        {"num_channels": -1},
        {"backbone_args": {"layers": [10**9]}},
        {"model_type": "swav", "num_prototypes": 10**12},
        {"model_type": "avid", "num_instances": 10**12},
        {"image_mean": [1e999, 0, 0]},
    ],
}


@pytest.mark.parametrize(("which", "change"), [(key, change) for key, all_ in ABSURD.items() for change in all_])
def test_absurd_sizes_in_a_configuration_are_one_sentence(place, capsys, which, change):
    file = place / "mapped/model" / ("config.json" if which == "timm" else "pretraining/config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for command in ("knn", "encoder", "torch") if which == "timm" else ("convert", "card"):
        assert run(commands("mapped/model")[command]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kilobytes


@pytest.mark.parametrize("kind", ["expanded", "meta", "many names", "nested", "itself", "layers"])
def test_tensors_that_only_claim_their_size_are_refused(tmp_path, capsys, kind):
    weight = torch.zeros(64, 3, 7, 7)
    nested: list = [weight]
    for _ in range(60):
        nested = [nested, nested]
    content = {
        "expanded": {"conv1.weight": torch.zeros(1).expand(10**9, 64)},
        "meta": {"conv1.weight": torch.empty(10**9, 64, device="meta")},
        "many names": {f"layer1.{i}.weight": weight for i in range(20_000)},
        "nested": {"state_dict": {"conv1.weight": weight}, "x": nested},
        "itself": {"conv1.weight": weight},
        "layers": {f"layer1.{10**12 + i}.conv1.weight": weight for i in range(3)},
    }[kind]
    if kind == "itself":
        content["x"] = content
    torch.save(content, tmp_path / "original.pth")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for method in ("barlow_twins", "simsiam", "swav"):
        assert (
            run(["convert", str(tmp_path / "original.pth"), "--method", method, "--output", str(tmp_path / "x")]) == 2
        )
        assert "original.pth" in capsys.readouterr().err
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000


def test_a_checkpoint_that_lacks_a_tensor_is_not_exported(place, capsys):
    """As in checkpoints of an earlier version, which have no digests."""
    from safetensors.torch import load_file, save_file

    checkpoint = place / "mapped/checkpoints/step_00000008"
    tensors = load_file(checkpoint / "model.safetensors")
    whole = dict(tensors)
    for change in ("missing", "turned"):
        tensors = dict(whole)
        weight = tensors.pop("projector.0.weight")
        if change == "turned":
            tensors["projector.0.weight"] = weight.view(weight.shape[1], weight.shape[0])
            assert tensors["projector.0.weight"].shape != weight.shape
        save_file(tensors, checkpoint / "model.safetensors")
        assert run(["export", "mapped", "--output", "exported"]) == 2
        assert "projector.0.weight missing or of another size" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------- fuzz


def mutated(content: bytes, generator: random.Random) -> bytes:
    """Mutate content: cut, flip bytes, repeat or remove a part, make a number absurd, or change the file type."""
    data = bytearray(content)
    place, kind = generator.randrange(len(data) or 1), generator.randrange(7)
    if kind == 0:
        return bytes(data[:place])
    if kind == 1:
        for _ in range(generator.choice((1, 1, 20))):
            if data:
                data[generator.randrange(len(data))] = generator.randrange(256)
        return bytes(data)
    if kind == 2:
        return bytes(data[:place] + data[place : place + 40] * 3 + data[place + 40 :])
    if kind == 3:
        return bytes(data[:place] + data[place + generator.randrange(1, 60) :])
    if kind in (4, 5):
        values = [b"-1", b"1e400", b"NaN", b"null", b"[]", b"{}", b'"x"', b"true", b"9" * 40, b"0"]
        digits = [i for i in range(len(data)) if chr(data[i]).isdigit()]
        at = generator.choice(digits) if digits else place
        return bytes(data[:at] + generator.choice(values) + data[at + 1 :])
    return generator.choice(
        [b"", b"\0" * 1000, b"[" * 5000, b"\xff\xfe{", b"[1]", b"null", pickle.dumps(Bomb(Path("executed")))]
    )


def fuzz(place: Path, count: int, seed: int) -> None:
    generator = random.Random(seed)
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak, since earlier tests ran in this process
    files = [f for f in (place / "mapped").rglob("*") if f.suffix in (".json", ".yaml", ".safetensors")]
    files = [f for f in files if f.name != "metrics.jsonl"]
    whole = {file: file.read_bytes() for file in files}
    reads = commands("mapped/model") | {"export": ["export", "mapped", "--output", "exported"]}
    for _ in range(count):
        file = generator.choice(files)
        name = generator.choice(("convert", "card", "encoder", "export", "convert", "card"))
        head = whole[file][:4000] if file.suffix == ".safetensors" else whole[file]
        file.write_bytes(mutated(head, generator) + whole[file][len(head) :])
        arguments = reads[name]
        if name == "encoder":
            arguments = ["evaluate", "knn", "mapped/model", "--data", "absent", "--num-workers", "0"]
        assert run(arguments) in (0, 2), (file, name)
        file.write_bytes(whole[file])
        for other in files:  # `card` writes two of them
            if other.read_bytes() != whole[other]:
                other.write_bytes(whole[other])
    assert not Path("executed").exists()
    peak = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
    assert peak < 4_000_000  # kilobytes, for the whole test process


def test_damaged_files_of_a_model_end_in_success_or_one_sentence(place):
    fuzz(place, 300, seed=0)


@pytest.mark.slow
def test_two_thousand_damaged_files_end_in_success_or_one_sentence(place):
    fuzz(place, 2000, seed=1)


def fuzz_originals(folder: Path, count: int, seed: int) -> None:
    generator, path = random.Random(seed), folder / "original.pth"
    network = {f"layer{s}.0.conv{i}.weight": torch.zeros(4, 4, 3, 3) for s in (1, 2, 3, 4) for i in (1, 2)}
    torch.save({"state_dict": network | {"conv1.weight": torch.zeros(4, 3, 7, 7)}, "epoch": 3}, path)
    modern = path.read_bytes()
    torch.save({"conv1.weight": torch.zeros(4, 3, 7, 7)}, path, _use_new_zipfile_serialization=False)
    old = path.read_bytes()
    save_file({"conv1.weight": torch.zeros(4, 3, 7, 7)}, folder / "original.safetensors")
    safe = (folder / "original.safetensors").read_bytes()
    trees = pickle.dumps({"experiment_state": {"online_params": {"a": {"w": 1}}}})
    for _ in range(count):
        file, content, method = generator.choice(
            [(path, modern, "simsiam"), (path, old, "swav"), (path.with_suffix(".pkl"), trees, "byol")]
            + [(path.with_suffix(".safetensors"), safe, "barlow_twins")]
        )
        file.write_bytes(mutated(content, generator))
        assert run(["convert", str(file), "--method", method, "--output", str(folder / "out")]) in (0, 2)
    assert not Path("executed").exists()


def test_damaged_originals_end_in_success_or_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fuzz_originals(tmp_path, 300, seed=0)


@pytest.mark.slow
def test_two_thousand_damaged_originals_end_in_success_or_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fuzz_originals(tmp_path, 2000, seed=1)
