# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""What a run of several processes writes on the terminal: its own words, and no warning of a library."""

from pathlib import Path

import pytest

from hf_ssl.recipe import recipe_from_dict
from hf_ssl.training.pretrain import pretrain
from tests import runs
from tests.conftest import digit_dataset


def train(folder: Path, backbone: str) -> None:
    """Two steps."""
    content = {
        "method": "simsiam",
        "model": {"backbone": backbone},
        "views": {"all": {"size": 32}},
        "data": {"num_workers": 0},
        "train": {"steps": 2, "batch_size": 8, "output_dir": str(folder)},
    }
    pretrain(recipe_from_dict(content), dataset=digit_dataset(0, 32))


@pytest.mark.parametrize("backbone", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_two_processes_write_no_warning_of_a_library(tmp_path, backbone):
    log = tmp_path / "log"
    assert runs.start(train, tmp_path / "run", backbone, processes=2, log=log).wait(120) == 0
    said = log.read_text()
    assert "Warning" not in said and "Writing model shards" not in said
    assert "it/s]" in said or "step/s]" in said or "s/step]" in said, "the log has the run's own progress"
