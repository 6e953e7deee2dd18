# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""The method in docs/new_method.md, unchanged, through every command that a method must support."""

import json
import os
import re
import shutil
import signal
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hf_ssl.cli import main
from tests.hub.fake_hub import FakeHub
from tests.hub.test_push import client
from tests.runs import Run, start
from tests.training.test_resume import assert_same_weights, stop_at


DOCUMENT = Path(__file__).parents[2] / "docs" / "new_method.md"
METHOD = "vicreg.py:VicregForPreTraining"
LOAD = """
import sys
sys.modules["hf_ssl"] = None  # importing it fails, as where it is not installed
import torch
from transformers import AutoModel, AutoModelForPreTraining
repo, output = sys.argv[1:]
model = AutoModelForPreTraining.from_pretrained(repo, subfolder="pretraining", trust_remote_code=True)
torch.manual_seed(0)
views = torch.randn(4, 2, 3, 32, 32)
with torch.no_grad():
    found = model.eval()(views)
    encoder = AutoModel.from_pretrained(repo).eval()(views[:, 0]).pooler_output.flatten(1)
torch.save({"embeddings": found.embeddings, "loss": found.loss, "encoder": encoder}, output)
"""


@pytest.fixture
def place(tmp_path, digits, monkeypatch) -> Path:
    """A working folder with the method file from the document and a small recipe."""
    code = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert len(code) == 1 and 60 <= code[0].count("\n") <= 90
    (tmp_path / "vicreg.py").write_text(code[0])
    small = "backbone: test_resnet, projector_dims: [32, 32]"
    (tmp_path / "vicreg.yaml").write_text(
        f"method: {METHOD}\nmodel: {{{small}}}\nviews: {{all: {{size: 32}}}}\noptim: {{lr: 0.05}}\n"
        f"data: {{path: {digits}, num_workers: 0}}\nmonitor: {{every: 2}}\n"
        "train: {steps: 16, batch_size: 32, checkpoint_every: 1, log_every: 1}\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(folder: str, *arguments: str) -> None:
    os.chdir(folder)
    with Path("stdout").open("w") as out, redirect_stdout(out):
        main(list(arguments))


def begun(*arguments: str) -> Run:
    """Run `hf-ssl` in a separate process, which only knows built-in methods and those it imports."""
    Path("stderr").unlink(missing_ok=True)
    return start(command, os.getcwd(), *arguments, cpu=False, log=Path("stderr").absolute())


def run(*arguments: str) -> SimpleNamespace:
    """Run `hf-ssl` to its end; returns exit code and output."""
    code = begun(*arguments).wait(timeout=300)
    return SimpleNamespace(returncode=code, stdout=Path("stdout").read_text(), stderr=Path("stderr").read_text())


def test_a_method_in_a_file_goes_through_everything(place, digits):
    # A killed and resumed run equals an uninterrupted one.
    done = run("pretrain", "vicreg.yaml", "train.output_dir=whole")
    assert done.returncode == 0, done.stderr[-2000:]
    cut = begun("pretrain", "vicreg.yaml", "train.output_dir=cut")
    assert stop_at(cut, Path("cut"), 5, 0.0, signal.SIGKILL) == -signal.SIGKILL
    done = run("pretrain", "vicreg.yaml", "train.output_dir=cut")
    assert done.returncode == 0 and "Continuing cut at step" in done.stderr, done.stderr[-2000:]
    last = "checkpoints/step_00000016/model.safetensors"
    assert_same_weights(Path("whole") / last, Path("cut") / last)
    assert "knn" in json.loads(Path("cut/model/results.json").read_text())["final"]

    # Preview, plan and evaluation.
    assert run("preview", "vicreg.yaml").returncode == 0 and Path("preview.png").exists()
    assert "peak" in run("plan", "vicreg.yaml", "--processes", "2").stdout
    done = run("evaluate", "knn", "cut", "--data", str(digits), "--num-workers", "0")
    assert done.returncode == 0 and "knn" in done.stdout, done.stderr[-2000:]

    # Code named by a folder is not imported unless the user names it too.
    for refused in (("export", "cut", "--output", "out"), ("card", "cut")):
        done = run(*refused)
        assert done.returncode == 2 and "--method" in done.stderr, refused
    done = run("export", "cut", "--output", "out", "--method", METHOD)
    assert done.returncode == 0, done.stderr[-2000:]
    assert_same_weights(Path("out/pretraining/model.safetensors"), Path("cut/model/pretraining/model.safetensors"))
    done = run("card", "cut", "--method", METHOD, "--license", "apache-2.0")
    card = Path("cut/model/README.md").read_text()
    assert done.returncode == 0 and "bardes2022vicreg" in card and "2105.04906" in card and "apache-2.0" in card
    assert str(place) not in card and f"method: {METHOD}" in card

    # Push, then load without hf_ssl installed.
    with FakeHub() as hub:
        done = client(hub, place / "home", "-m", "hf_ssl", "push", "cut", "user/vicreg")
        assert done.returncode == 0, done.stderr[-2000:]
        done = client(hub, place / "home", "-c", LOAD, "user/vicreg", "found.pt")
        assert done.returncode == 0, done.stderr[-3000:]
    there, here = torch.load("found.pt"), expected(place)
    for name, value in here.items():
        torch.testing.assert_close(there[name], value)

    # A run does not resume with different code.
    shutil.rmtree("cut/model")
    Path("vicreg.py").write_text(Path("vicreg.py").read_text().replace("1e-4", "1e-3"))
    done = run("pretrain", "vicreg.yaml", "train.output_dir=cut")
    assert done.returncode == 2 and "code of vicreg.py:VicregForPreTraining has changed" in done.stderr


def expected(place: Path) -> dict[str, torch.Tensor]:
    """Outputs of the exported model in this process, which imports the method file."""
    from hf_ssl.methods import load_method
    from hf_ssl.models import METHODS

    known = dict(METHODS)
    try:
        model = load_method(str(place / METHOD))[1].from_pretrained(place / "cut/model/pretraining").eval()
    finally:
        for name in METHODS.keys() - known.keys():
            del METHODS[name]
    torch.manual_seed(0)
    views = torch.randn(4, 2, 3, 32, 32)
    with torch.no_grad():
        output = model(views)
        encoder = model.encoder(views[:, 0]).pooler_output
    return {"embeddings": output.embeddings, "loss": output.loss, "encoder": encoder}


FAULTS = {
    "no such file": ("gone.py:VicregForPreTraining", None, "gone.py could not be imported"),
    "no such class": ("vicreg.py:Vicreg", None, "defines no subclass Vicreg"),
    "no module": ("no.such.module:XForPreTraining", None, "no.such.module could not be imported"),
    "an error in it": (METHOD, ("import torch\n", "import torch\nraise OSError('a\\nb')\n"), r"OSError: a b"),
    "a name that is taken": (METHOD, ('model_type = "vicreg"', 'model_type = "byol"'), "must be a new identifier"),
    "no config": (METHOD, ("class VicregConfig", "class OtherConfig"), "could not be imported"),
    "what does not travel": (
        METHOD,
        ("import torch\n", "import torch\nfrom hf_ssl import pretrain\n"),
        "is not shipped with a model",
    ),
    "a whole package": (
        METHOD,
        ("import torch\n", "import torch\nimport hf_ssl.models\n"),
        "so that it can be shipped",
    ),
    "neither": ("vicreg", None, "path/to/file.py:Class"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_what_is_no_method_is_one_sentence(kind, place, capsys):
    name, change, said = FAULTS[kind]
    folder = place / kind.replace(" ", "_")  # a new folder each time, since a file is imported once
    folder.mkdir()
    code = (place / "vicreg.py").read_text()
    name = name.replace("vicreg.py", f"{folder.name}.py") if ".py" in name else name
    (folder / f"{folder.name}.py").write_text(code.replace(*change) if change else code)
    (folder / "own.yaml").write_text((place / "vicreg.yaml").read_text().replace(METHOD, name))
    with pytest.raises(SystemExit) as stopped:
        main(["pretrain", str(folder / "own.yaml"), f"train.output_dir={place / 'run'}"])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and re.search(said, error) and error.count("\n") == 1, error
    assert not (place / "run").exists()
