# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""mteb runs its tasks on our encoders, and the scores stand where the Hub looks for them."""

import sys
from pathlib import Path

import pytest
import torch
import yaml
from datasets import DatasetDict
from huggingface_hub import parse_eval_result_entries

from hf_ssl import SimSiamConfig, SimSiamModel
from hf_ssl.cli import main
from hf_ssl.data.sources import source_of
from hf_ssl.evaluation.encoders import open_model
from hf_ssl.evaluation.features import extract
from hf_ssl.evaluation.mteb_tasks import ImageEncoder, run_mteb
from hf_ssl.recipe import DataConfig, RecipeError
from tests.conftest import digit_dataset


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    SimSiamModel(SimSiamConfig(backbone="test_resnet", image_size=32)).save_pretrained(folder)
    return folder


def digits_task():
    """mteb's own classification of images, on digits that need no network."""
    from mteb.abstasks import AbsTaskClassification
    from mteb.abstasks.task_metadata import TaskMetadata

    class Digits(AbsTaskClassification):
        input_column_name, n_experiments, samples_per_label = "image", 2, 4
        metadata = TaskMetadata(
            name="TinyDigits",
            description="Handwritten digits.",
            reference="https://huggingface.co/datasets/nobody/digits",
            dataset={"path": "nobody/digits", "revision": "0" * 40},
            type="ImageClassification",
            category="i2c",
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="accuracy",
            date=("1998-01-01", "1998-12-31"),
            domains=["Web"],
            task_subtypes=["Object recognition"],
            license="not specified",
            annotations_creators="derived",
            dialect=[],
            modalities=["image"],
            sample_creation="created",
            bibtex_citation="",
        )

    task = Digits()
    task.dataset = DatasetDict({"train": digit_dataset(0, 100), "test": digit_dataset(100, 140)})
    task.data_loaded = True
    return task


def test_a_task_is_run_by_mteb_and_its_score_written_for_the_hub(encoder):
    pytest.importorskip("mteb")
    scores = run_mteb(str(encoder), [digits_task()])
    assert 0.15 < scores["TinyDigits"] <= 1  # chance is a tenth
    entries = parse_eval_result_entries(yaml.safe_load((encoder / ".eval_results/TinyDigits.yaml").read_text()))
    assert [entry.task_id for entry in entries] == ["TinyDigits_default_test", "TinyDigits"]
    assert entries[-1].value == pytest.approx(100 * scores["TinyDigits"])
    assert entries[0].dataset_id == "nobody/digits" and "MTEB v" in entries[0].source_name
    assert (encoder / "results/mteb/TinyDigits.json").exists()


def test_mteb_gets_the_features_that_every_evaluation_gets(encoder):
    opened, dataset = open_model(str(encoder)), digit_dataset(0, 6)
    given = ImageEncoder(opened, None).encode([{"image": dataset[:4]["image"]}, {"image": dataset[4:]["image"]}])
    source = source_of(dataset, DataConfig())
    device = torch.device("cpu")
    own = extract(opened.embed, source, opened.transform, device=device, batch_size=6)[""].vectors[:, 0]
    assert torch.allclose(given, own.cpu(), atol=1e-5)


def test_what_cannot_be_run_is_said_in_a_sentence(encoder, monkeypatch, capsys):
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "mteb", None)
        with pytest.raises(SystemExit):
            main(["evaluate", "mteb", str(encoder), "--tasks", "CIFAR10"])
    assert "mteb is not installed; pip install" in capsys.readouterr().err
    pytest.importorskip("mteb")
    with pytest.raises(RecipeError, match="mteb has no such task"):
        run_mteb(str(encoder), ["CIFAR-no"])
    with pytest.raises(RecipeError, match="needs text; choose an image task"):
        run_mteb(str(encoder), ["STS12"])
