# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Protocols give the figures of their definitions, from features that are made once, on any number of processes."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.preprocessing import StandardScaler
from transformers import TimmWrapperConfig, TimmWrapperModel, ViTConfig, ViTImageProcessor, ViTModel

from hf_ssl import SimSiamConfig, SimSiamForPreTraining, SimSiamModel
from hf_ssl.cli import main
from hf_ssl.data.bank import place_in_class
from hf_ssl.data.sources import load_source
from hf_ssl.errors import RecipeError, UserError
from hf_ssl.evaluation import store
from hf_ssl.evaluation.encoders import open_model
from hf_ssl.evaluation.evaluate import _low_shot, evaluate
from hf_ssl.evaluation.features import Features
from hf_ssl.evaluation.keep import keep
from hf_ssl.evaluation.knn import knn
from hf_ssl.evaluation.linear import accuracy_of, logistic_regression
from hf_ssl.evaluation.protocols import KNN_PROTOCOLS, LowShot
from hf_ssl.evaluation.retrieval import mean_average_precision
from hf_ssl.evaluation.scores import Scores
from hf_ssl.evaluation.store import features_of
from hf_ssl.hub.evaluations import read_evaluations
from hf_ssl.recipe import DataConfig, MonitorConfig
from tests.methods import save_encoder
from tests.runs import start


def digit_features(start: int, stop: int) -> Features:
    digits = load_digits()
    vectors = torch.tensor(digits.data[start:stop], dtype=torch.float32)
    return Features(vectors, torch.tensor(digits.target[start:stop]), [])


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    return save_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.mark.parametrize("name", KNN_PROTOCOLS)
def test_knn_is_the_vote_that_is_published(name):
    protocol = KNN_PROTOCOLS[name]
    bank, queries = digit_features(0, 400), digit_features(400, 500)
    if not protocol.normalize:  # whose dot products overflow no exponential
        bank, queries = (replace(side, vectors=side.vectors / 100) for side in (bank, queries))
    found = knn(bank, queries, k=protocol.k, temperature=protocol.temperature, normalize=protocol.normalize, chunk=32)
    for k in protocol.k:
        hits = []
        for vector, label in zip(queries.vectors, queries.labels, strict=True):
            keys, asked = bank.vectors, vector
            if protocol.normalize:
                keys, asked = F.normalize(keys, dim=1), F.normalize(asked, dim=0)
            similarity = keys @ asked
            near = sorted(range(len(keys)), key=lambda i: -similarity[i].item())[:k]
            votes = torch.zeros(10, dtype=torch.float64)
            for i in near:
                votes[bank.labels[i]] += np.exp(
                    (similarity[i].item() - similarity.max().item()) / protocol.temperature
                )
            hits.append(votes.argmax() == label)
        assert found[k]["top1"] == pytest.approx(np.mean(hits), abs=1e-6)
    assert found[protocol.k[0]]["top5"] >= found[protocol.k[0]]["top1"]


def test_blocks_of_a_bank_change_no_vote():
    bank, queries = digit_features(0, 900), digit_features(900, 1000)
    whole = knn(bank, queries, k=(20,))
    parts = replace(bank, vectors=bank.vectors.repeat_interleave(40, 0), labels=bank.labels.repeat_interleave(40))
    assert len(parts) > 2 * 16384
    assert knn(parts, queries, k=(800,))[800] == knn(bank, queries, k=(20,))[20] == whole[20]


def test_logistic_regression_is_that_of_scikit_learn():
    train, test = digit_features(0, 500), digit_features(500, 900)
    model, c = logistic_regression(train, cs=(0.01,))
    # In float32 scikit-learn stops early, how early depends on the processor.
    scaler = StandardScaler().fit(train.vectors.double().numpy())
    reference = LogisticRegression(C=0.01, tol=1e-8, max_iter=5000)
    reference.fit(scaler.transform(train.vectors.double().numpy()), train.labels.numpy())
    used = model.scale > 0
    assert c == 0.01 and np.allclose(model.weight[used].T.numpy(), reference.coef_[:, used.numpy()], atol=1e-4)
    score = reference.score(scaler.transform(test.vectors.double().numpy()), test.labels.numpy())
    assert accuracy_of(model, test)["top1"] == pytest.approx(score, abs=1e-6)


def test_c_is_chosen_on_training_examples_alone():
    train = digit_features(0, 300)
    vectors, labels = train.vectors.double().numpy(), train.labels.numpy()
    place, size = place_in_class(labels)
    held = place < np.maximum(size // 5, size > 1)
    scores = {}
    for c in (1e-4, 1e-2, 1.0):
        scaler = StandardScaler().fit(vectors[~held])
        model = LogisticRegression(C=c, tol=1e-8, max_iter=5000)
        model.fit(scaler.transform(vectors[~held]), labels[~held])
        scores[c] = model.score(scaler.transform(vectors[held]), labels[held])
    expected = max(scores, key=lambda c: (scores[c], -c))
    assert logistic_regression(train, cs=(1e-4, 1e-2, 1.0))[1] == expected


def test_draws_that_take_every_example_have_the_error_of_the_test_examples():
    bank, queries = digit_features(0, 200), digit_features(200, 300)
    value, about = _low_shot(LowShot("", per_class=1000), bank, queries, [])
    model, _ = logistic_regression(bank, cs=(1.0,))
    assert value["lowshot"] == accuracy_of(model, queries)["top1"] and "spread" not in about
    assert _low_shot(LowShot("", per_class=5), bank, queries, [])[1]["spread"]["lowshot"] > 0


def test_average_precision_is_that_of_scikit_learn():
    features = digit_features(0, 200)
    unit = F.normalize(features.vectors, dim=1).numpy()
    labels = features.labels.numpy()
    expected = []
    for i in range(200):
        others = np.arange(200) != i
        expected.append(average_precision_score(labels[others] == labels[i], unit[others] @ unit[i]))
    found = mean_average_precision(features, chunk=32)
    assert found["map"] == pytest.approx(np.mean(expected), abs=1e-5)
    assert found["errors"]["map"] == pytest.approx(np.std(expected, ddof=1) / 200**0.5, rel=1e-3)


def test_the_error_of_a_mean_per_class_is_that_of_classes_drawn_apart():
    labels, right = torch.tensor([0] * 40 + [1] * 10), torch.tensor([1] * 30 + [0] * 10 + [1] * 4 + [0] * 6)
    scores = Scores(torch.tensor([0, 1]))
    scores.add(F.one_hot(torch.where(right == 1, labels, 1 - labels), 2).float(), labels)
    found, chance = scores.read(), np.random.default_rng(0)
    drawn = [(chance.binomial(40, 0.75) / 40 + chance.binomial(10, 0.4) / 10) / 2 for _ in range(20000)]
    assert found["mean_per_class"] == pytest.approx((0.75 + 0.4) / 2)
    assert found["errors"]["mean_per_class"] == pytest.approx(np.std(drawn), rel=0.03)


def test_a_random_projection_is_of_the_pixels_and_as_wide_as_the_encoder(encoder, digits):
    opened, source = open_model(encoder), load_source(DataConfig(path=str(digits)))
    width = features_of(opened, source, cache=None)[""].vectors.shape[1]
    pixels, first, again, other = (
        features_of(one, source, cache=None)[""].vectors
        for one in (
            opened.raw_pixels(),
            *(opened.random_projection(seed) for seed in (0, 0, 1)),
        )
    )
    assert first.shape[1] == width and first.equal(again) and not first.equal(other)
    distances = [torch.pdist(one).double() for one in (pixels, first)]
    assert torch.corrcoef(torch.stack(distances))[0, 1] > 0.8, "it keeps distances"


# ------------------------------------------------------------------------------------------------------ features once


def test_features_are_made_once_and_are_the_same_again(encoder, digits, monkeypatch, tmp_path):
    source, opened = load_source(DataConfig(path=str(digits))), open_model(encoder)
    calls = []
    monkeypatch.setattr(store, "embedded", lambda *a, real=store.embedded, **k: calls.append(1) or real(*a, **k))
    fresh, first, again = (features_of(opened, source, cache=cache)[""] for cache in (None, tmp_path, tmp_path))
    assert len(calls) == 2 and first.vectors.equal(again.vectors) and first.vectors.equal(fresh.vectors)
    with torch.no_grad():
        other = open_model(encoder)
        next(other.model.parameters()).add_(0.1)
    features_of(other, source, cache=tmp_path)
    features_of(opened, source.select(range(5)), cache=tmp_path)
    assert len(calls) == 4, "other weights, and other data, are other features"


def test_many_features_are_kept_in_half_the_bytes(encoder, digits, monkeypatch):
    source, opened = load_source(DataConfig(path=str(digits))), open_model(encoder)
    exact = features_of(opened, source, cache=None)[""]
    monkeypatch.setattr(store, "_FULL_PRECISION", 0)
    half = features_of(opened, source, cache=None)[""]
    assert half.vectors.dtype == torch.float16
    assert torch.allclose(half.block(0, 128), exact.block(0, 128), rtol=2e-3, atol=1e-3)


def embed_and_keep(encoder: str, digits: str, folder: str) -> None:
    Accelerator()
    source = load_source(DataConfig(path=digits)).select(range(37))
    found = features_of(open_model(encoder), source, batch_size=5, cache=None)[""]
    torch.save([found.vectors.clone(), found.labels], f"{folder}/{os.environ.get('RANK', 0)}.pt")


def test_every_example_is_embedded_once_on_any_number_of_processes(encoder, digits, tmp_path):
    embed_and_keep(encoder, str(digits), str(tmp_path))
    vectors, labels = torch.load(tmp_path / "0.pt")
    for world in (2, 3):
        folder = tmp_path / str(world)
        folder.mkdir()
        run = start(embed_and_keep, encoder, str(digits), str(folder), processes=world, log=folder / "log")
        assert run.wait(timeout=120) == 0, (folder / "log").read_text()[-3000:]
        for rank in range(world):
            theirs, their_labels = torch.load(folder / f"{rank}.pt")
            assert torch.equal(labels, their_labels) and torch.allclose(theirs, vectors, atol=1e-6)


# --------------------------------------------------------------------------------------------------- the command line


def test_a_result_is_a_file_of_the_model_and_a_row_of_its_card(digits, tmp_path, capsys):
    from tests.training.test_resume import command

    main(command("simsiam", digits, tmp_path / "run", "train.steps=2"))
    run = str(tmp_path / "run")
    capsys.readouterr()
    main(["evaluate", "all", run, "--data", str(digits), "--num-workers", "0"])
    shown = capsys.readouterr().out
    assert "untrained" in shown and "raw pixels" in shown and "±" in shown
    files = sorted(file.name for file in (tmp_path / "run/model/results").iterdir())
    assert files == [f"{kind}_digits0.json" for kind in ("knn", "linear", "lowshot", "retrieval")]
    result = json.loads((tmp_path / "run/model/results/lowshot_digits0.json").read_text())
    assert result["spread"]["lowshot"] > 0 and result["errors"]["lowshot"] > 0 and result["versions"]
    assert len(result["baselines"]) == 3 and "## Evaluation\n" not in (tmp_path / "run/model/README.md").read_text()
    main(["card", run])
    card = ModelCard.load(tmp_path / "run/model/README.md")
    names = [entry.metric_name for entry in card.data.eval_results]
    assert any("k=20, T=0.1" in name for name in names) and any("C=" in name for name in names)
    assert "## Evaluation\n" in card.text and "| raw pixels |" in card.text


def test_models_are_compared_side_by_side(encoder, digits, tmp_path, capsys, monkeypatch):
    create = timm.create_model
    source = create("test_resnet", num_classes=0)

    def offline(name, pretrained=False, **kwargs):
        return source if pretrained else create(name, **kwargs)

    monkeypatch.setattr(timm, "create_model", offline)
    output = tmp_path / "both.json"
    arguments = ["--data", str(digits), "--protocol", "dinov3", "--num-workers", "0", "--no-baselines"]
    main(["evaluate", "knn", encoder, "timm:test_resnet.r160_in1k", *arguments, "--output", str(output)])
    shown = capsys.readouterr().out
    assert "knn_k200" in shown and "timm:test_resnet" in shown
    assert set(json.loads(output.read_text())["knn"]) == {encoder, "timm:test_resnet.r160_in1k"}


@pytest.mark.parametrize("layer", ["-2", "1"])
def test_an_earlier_layer_is_measured(encoder, digits, layer):
    data, monitor = DataConfig(path=str(digits), num_workers=0), MonitorConfig(path=str(digits))
    assert evaluate("knn", encoder, data, monitor, layer=layer)["knn"] >= 0
    width = features_of(open_model(encoder, layer=layer), load_source(data), cache=None)[""].vectors.shape[1]
    assert width != features_of(open_model(encoder), load_source(data), cache=None)[""].vectors.shape[1]


def test_embeddings_are_a_table_of_files_and_neighbors(encoder, digits, tmp_path, capsys):
    main(["embed", encoder, "--data", str(digits), "--output", str(tmp_path / "e.parquet"), "--num-workers", "0"])
    table = pq.read_table(tmp_path / "e.parquet").to_pydict()
    vectors = F.normalize(torch.tensor(table["vector"]), dim=1)
    similarity = (vectors @ vectors.T).fill_diagonal_(-1)
    assert len(table["file"]) == 128 and table["neighbors"][3][0] == similarity[3].argmax().item()
    assert table["label"][0] == "0" and np.std(table["x"]) >= np.std(table["y"]) > 0
    assert str(tmp_path / "e.parquet") in capsys.readouterr().out


def test_embed_names_the_files_that_have_no_row(encoder, tmp_path, caplog):
    for color in range(3):
        Image.new("RGB", (32, 32), (90 * color, 0, 0)).save(tmp_path / f"{color}.png")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    main(["embed", encoder, "--data", str(tmp_path), "--output", str(tmp_path / "e.parquet"), "--num-workers", "0"])
    assert pq.read_table(tmp_path / "e.parquet").num_rows == 3
    assert "1 file(s) could not be read and have no row, the first is" in caplog.text


# ----------------------------------------------------------------------------------------------------- what goes wrong


@pytest.fixture
def vit(tmp_path) -> Path:
    """An encoder of transformers with a pooler and its processor."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTModel(ViTConfig(**sizes, image_size=32, patch_size=16)).save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


def drop_weights(folder: Path, word: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if word not in name}
    assert len(kept) < len(tensors)
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


def test_a_pooler_that_is_not_there_is_not_made_up(vit):
    assert open_model(str(vit))
    drop_weights(vit, "pooler")
    with pytest.raises(RecipeError, match=r"lack the pooler of ViTModel.*--layer -1"):
        open_model(str(vit))
    assert open_model(str(vit), layer="-1") and open_model(str(vit), pooler=False)


def test_weights_that_are_not_there_are_not_made_up(vit):
    drop_weights(vit, "layer.0.")
    for more in ({}, {"layer": "-1"}, {"pooler": False}):
        with pytest.raises(RecipeError, match=r"files lack \d+ tensor"):
            open_model(str(vit), **more)


@pytest.mark.parametrize("layer", ["head", "²", "--3", "projector.", "projector.-1", "projector.x", ""])
def test_a_layer_that_is_none_is_refused(encoder, layer):
    with pytest.raises(RecipeError, match="--layer must be a number, projector or projector.N"):
        open_model(encoder, layer=layer)


def test_a_layer_behind_the_last_is_refused(tmp_path):
    config = SimSiamConfig(backbone="test_resnet", image_size=32)
    SimSiamForPreTraining(config).save_pretrained(tmp_path / "pretraining")
    SimSiamModel(config).save_pretrained(tmp_path)
    assert open_model(str(tmp_path), layer="projector.0")
    with pytest.raises(RecipeError, match=r"--layer projector.99 does not exist; the last one is projector\.\d"):
        open_model(str(tmp_path), layer="projector.99")


def test_the_untrained_network_has_the_initial_values_of_timm(tmp_path):
    new = timm.create_model("test_resnet")
    about = {"architecture": "test_resnet", "num_classes": 0, "pretrained_cfg": new.pretrained_cfg}
    TimmWrapperModel(TimmWrapperConfig.from_dict(about)).save_pretrained(tmp_path)
    encoder = open_model(str(tmp_path)).untrained()
    assert encoder.name == "untrained test_resnet"
    untrained = encoder.model.timm_model.state_dict()
    theirs = new.state_dict()
    for name in ("conv1.0.weight", "layer1.0.conv1.weight", "layer1.0.bn2.weight"):
        assert untrained[name].std().item() == pytest.approx(theirs[name].std().item(), rel=0.2), name


@pytest.mark.parametrize("size", [0, 100, 10_000])
def test_damaged_features_are_made_anew(encoder, digits, tmp_path, size, caplog):
    source, opened = load_source(DataConfig(path=str(digits))), open_model(encoder)
    whole = features_of(opened, source, cache=tmp_path)[""].vectors.clone()
    (file,) = tmp_path.glob("*.arrow")
    content = file.read_bytes()
    file.unlink()  # what is mapped stays as it was
    file.write_bytes(content[:size])
    assert features_of(opened, source, cache=tmp_path)[""].vectors.equal(whole)
    assert f"{file.name} are damaged" in caplog.text.replace(str(tmp_path) + "/", "")
    assert file.read_bytes() == content and len(list(tmp_path.iterdir())) == 1


def test_features_that_others_make_meanwhile_are_left_alone(encoder, digits, tmp_path):
    source, opened = load_source(DataConfig(path=str(digits))), open_model(encoder)
    key = store.key_of(opened, source, "no")
    working, dead = tmp_path / f".partial_{key}_other_1", tmp_path / f".partial_{key}_other_2"
    for folder in (working, dead):
        folder.mkdir()
        (folder / "features.raw").touch()
    for path in (dead / "features.raw", dead):
        os.utime(path, (0, 0))
    features_of(opened, source, cache=tmp_path)
    assert (working / "features.raw").exists() and not dead.exists()


def test_a_full_disk_is_said(encoder, digits, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(UserError, match=r"could not be written to .*No space left.*HF_SSL_CACHE"):
        features_of(open_model(encoder), load_source(DataConfig(path=str(digits))), cache=tmp_path)
    assert not list(tmp_path.iterdir())


def test_changed_files_of_the_same_size_are_other_data(tmp_path, encoder):
    for number in range(4):
        Image.new("L", (32, 32), 50 * number).save(tmp_path / f"{number}.bmp")
    before = features_of(open_model(encoder), load_source(DataConfig(path=str(tmp_path))), cache=tmp_path / "c")[""]
    Image.new("L", (32, 32), 255).save(tmp_path / "1.bmp")
    after = features_of(open_model(encoder), load_source(DataConfig(path=str(tmp_path))), cache=tmp_path / "c")[""]
    assert before.vectors[0].equal(after.vectors[0]) and not before.vectors[1].equal(after.vectors[1])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("linear --protocol swav --layer -2", "--layer is for protocols on frozen features"),
        ("linear --protocol byol --folds label", "--folds is for protocols on frozen features"),
        ("linear --epochs 3", "--epochs is for protocols that train;"),
        ("linear --precision no", "--precision is for protocols that train;"),
        ("knn --temperature nan", "--temperature must be greater than 0"),
        ("finetune --seeds 0", "--seeds and --train-batch-size must be greater than 0"),
        ("finetune --epochs nan", "--seeds and --train-batch-size must be greater than 0"),
        ("lowshot --protocol swav-10% --num-workers 0", "lower --train-batch-size"),
    ],
)
def test_an_option_that_cannot_be_followed_is_refused(encoder, digits, capsys, arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    protocol, *more = arguments.split()
    with pytest.raises(SystemExit):
        main(["evaluate", protocol, encoder, "--data", str(digits), *more])
    shown = capsys.readouterr().err
    assert said in shown and "Traceback" not in shown and "monitor." not in shown


def test_a_result_says_its_layer_and_leaves_that_of_the_features_alone(digits, encoder, tmp_path):
    data, monitor = DataConfig(path=str(digits), num_workers=0), MonitorConfig(path=str(digits))
    SimSiamModel.from_pretrained(encoder).save_pretrained(tmp_path)
    files = [
        keep(evaluate("knn", str(tmp_path), data, monitor, layer=layer), str(tmp_path), data, None, None)
        for layer in (None, "-2")
    ]
    assert files[0] != files[1] and [("layer -2" in json.loads(f.read_text())["said"]) for f in files] == [False, True]


def test_results_of_several_models_go_into_a_new_folder(encoder, digits, tmp_path):
    output, arguments = tmp_path / "new" / "all.json", ["--num-workers", "0", "--no-baselines"]
    main(["evaluate", "all", encoder, "--data", str(digits), *arguments, "--output", str(output)])
    assert set(json.loads(output.read_text())) == {"knn", "linear", "lowshot", "retrieval"}


@pytest.mark.parametrize(
    "change",
    [
        {"measured": []},
        {"knn": None},
        {"knn": "0.5"},
        {"errors": 3},
        {"baselines": 3},
        {"baselines": {"a": {"knn": 1}}},
    ]
    + [{"data": 5}, {"chosen": {"C": "x"}}, {"knn": float("nan")}],
)
def test_a_file_that_is_no_result_is_named_and_left_out_of_the_card(tmp_path, caplog, change):
    good = {"protocol": "knn", "said": "k=20", "data": "d", "errors": {"knn": 0.1}, "measured": {}, "knn": 0.5}
    (tmp_path / "results").mkdir()
    for name, content in (("good", good), ("bad", good | change)):
        (tmp_path / "results" / f"{name}.json").write_text(json.dumps(content))
    assert read_evaluations(tmp_path) == [good] and "bad.json is not a result of hf-ssl evaluate" in caplog.text


def test_a_remedy_is_an_option_of_the_command(encoder, tmp_path, capsys):
    for number in range(4):
        Image.new("L", (32, 32), 50 * number).save(tmp_path / f"{number}.png")
    (tmp_path / "metadata.csv").write_text("file_name,weight\n0.png,0.5\n1.png,1.5\n")
    with pytest.raises(SystemExit):
        main(["evaluate", "knn", encoder, "--data", str(tmp_path)])
    shown = capsys.readouterr().err
    assert "set --label-column to a column" in shown and "monitor." not in shown
