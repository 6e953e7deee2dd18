# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""The notebooks of the docs run from top to bottom, and the fine-tuning example does."""

import subprocess
import sys
from pathlib import Path

import pytest
from transformers import pipeline

from hf_ssl.recipe import recipes_folder
from hf_ssl.training.pretrain import pretrain
from tests.conftest import digit_dataset
from tests.methods import few_steps


ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_runs_from_top_to_bottom(file, tmp_path):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    notebook = nbformat.read(file, as_version=4)
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where).execute()
    assert len(file.read_bytes()) < 300_000, "clear the outputs that nobody reads"


@pytest.mark.slow
def test_the_example_fine_tunes_an_export_to_a_classifier_that_loads(tmp_path):
    pretrain(few_steps("simsiam", tmp_path / "run", "monitor.every=0"), dataset=digit_dataset(0, 32))
    command = [sys.executable, str(ROOT / "examples" / "finetune.py"), str(tmp_path / "run" / "model")]
    options = ["--data", str(recipes_folder() / "quickstart"), "--epochs", "1", "--num-workers", "0"]
    done = subprocess.run(
        [*command, *options, "--output", str(tmp_path / "tuned")], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "accuracy on test" in done.stdout
    classify = pipeline("image-classification", model=str(tmp_path / "tuned"))
    found = classify(digit_dataset(0, 1)[0]["image"].convert("RGB"), top_k=20)
    assert {"airplanes", "buddha"} <= {one["label"] for one in found}
