# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""AVID and CMA end to end: a folder of videos with sound, one command, a model to share."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset, Features, Value, Video
from safetensors.torch import load_file

from hf_ssl.cli import main
from hf_ssl.hub.weights import find_weights, read_weights
from hf_ssl.models import AvidModel, SimSiamConfig, SimSiamModel
from hf_ssl.models.processing_avid import avid_processor
from hf_ssl.recipe import RecipeError, load_recipe
from hf_ssl.training import setup
from hf_ssl.training.accelerator import fit_model
from hf_ssl.training.metrics import read_metrics
from hf_ssl.training.pretrain import pretrain
from tests.runs import start
from tests.training.test_resume import METHOD_OVERRIDES


FRESH = """
import sys
sys.modules["hf_ssl"] = None  # importing it fails, as where it is not installed
import torch
from transformers import AutoModel, AutoModelForPreTraining, AutoModelForVideoClassification, AutoProcessor
folder, file, output = sys.argv[1:]
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
with torch.no_grad():
    inputs = processor(file, return_tensors="pt")
    found = dict(model(**inputs))
    whole = AutoModelForPreTraining.from_pretrained(folder, subfolder="pretraining", trust_remote_code=True)
    found["embeddings"] = whole(**inputs).embeddings
    load = AutoModelForVideoClassification.from_pretrained
    classifier = load(folder, num_labels=3, trust_remote_code=True)
    found["logits"] = classifier(inputs["pixel_values_videos"]).logits
torch.save(found, output)
"""


def run(output: Path, videos: Path, *more: str):
    recipe = output.parent / "avid.yaml"
    recipe.write_text("method: avid\n")
    common = [f"data.path={videos}", f"train.output_dir={output}", "data.num_workers=0", "views.all.size=32"]
    changes = ["train.steps=6", "monitor.every=1", "model.cma=false", *more]
    return pretrain(load_recipe(recipe, [*common, *METHOD_OVERRIDES["avid"], *changes]))


def run_in_float64(output: Path, videos: Path, *more: str):
    """Like `run`, but in float64: in float32, the order of sums changes the third digit after a few steps."""

    def inputs_too(module, args, kwargs):
        return tuple(x.double() for x in args), kwargs

    def fit_in_float64(model, *args):
        model.double().encoder.register_forward_pre_hook(inputs_too, with_kwargs=True)
        return fit_model(model, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "fit_model", fit_in_float64)
        return run(output, videos, *more)


def checkpoint(output: Path) -> dict[str, torch.Tensor]:
    return load_file(sorted((output / "checkpoints").glob("step_*"))[-1] / "model.safetensors")


@pytest.fixture(scope="module")
def avid(videos, tmp_path_factory):
    """A finished AVID run and its result."""
    output = tmp_path_factory.mktemp("avid") / "run"
    return output, run(output, videos)


def test_the_video_tower_starts_from_an_encoder_of_images(videos, tmp_path):
    encoder = SimSiamModel(SimSiamConfig(backbone="test_resnet"))
    encoder.save_pretrained(tmp_path / "encoder")
    more = (f"model.init_from={tmp_path / 'encoder'}", "optim.lr=0", "train.steps=1", "monitor.every=0")
    result = run(tmp_path / "run", videos, *more)
    trained = dict(AvidModel.from_pretrained(result.model_dir).video_tower.backbone.backbone.named_parameters())
    assert trained and all(trained[name].equal(tensor) for name, tensor in encoder.backbone.named_parameters())


def test_metrics_tell_of_both_towers(avid):
    output, result = avid
    for measured in (result.baseline, result.final):
        assert {
            "knn_video",
            "knn_audio",
            "video_to_audio_r1",
            "audio_to_video_median_rank",
            "video_to_audio_p1",
        } <= set(measured)
    logged = [line for line in read_metrics(output / "metrics.jsonl") if "loss" in line]
    assert all({"clips_per_second", "loss_cross", "z", "skipped"} <= line.keys() for line in logged)
    assert not {"positive_precision", "knn"} & set(result.final)


def test_the_memories_are_in_checkpoints_and_not_in_what_is_shared(avid):
    output, result = avid
    kept = checkpoint(output)
    assert kept["video_memory"].shape == kept["audio_memory"].shape == (24, 16)
    assert (kept["normalizer"][0] > 0).all()
    shared = load_file(result.model_dir / "pretraining" / "model.safetensors")
    assert not [name for name in shared if "memory" in name or name in ("normalizer", "draw_seed")]
    assert all(kept[name].equal(tensor) for name, tensor in shared.items())


def test_a_file_becomes_both_embeddings_where_hf_ssl_is_not_installed(avid, videos, elsewhere, tmp_path):
    file = next((videos / "test").rglob("*.mp4"))
    folder = avid[1].model_dir
    done = elsewhere.run("-c", FRESH, str(folder), str(file), str(tmp_path / "out.pt"))
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.load(tmp_path / "out.pt")
    inputs = avid_processor(AvidModel.from_pretrained(folder).config)(str(file), return_tensors="pt")
    with torch.no_grad():
        expected = AvidModel.from_pretrained(folder)(**inputs)
    for name in ("video_embeds", "audio_embeds", "video_pooler_output", "audio_pooler_output"):
        torch.testing.assert_close(found[name], expected[name])
    torch.testing.assert_close(found["embeddings"], torch.stack([expected.video_embeds, expected.audio_embeds], 1))
    assert found["logits"].shape == (1, 3)


def test_the_card_says_how_to_load_it(avid):
    card = (avid[1].model_dir / "README.md").read_text()
    assert "AutoProcessor" in card and "test_resnet and test_resnet" in card and "24 clips" in card
    assert "video to audio P@1: top result of the same class" in card


def test_cma_starts_from_the_memories_of_a_run(avid, videos, tmp_path):
    before = checkpoint(avid[0])
    result = run(
        tmp_path / "cma", videos, f"train.init_from={avid[0]}", "model.cma=true", "optim.lr=0", "train.steps=1"
    )
    after = checkpoint(tmp_path / "cma")
    name = "encoder.video_projector.0.weight"
    assert after[name].equal(before[name]), "the weights, at a learning rate of 0"
    moved = (after["video_memory"] != before["video_memory"]).any(1).sum()
    assert moved == 8, "the rows of one batch"
    assert after["normalizer"][0] == before["normalizer"][0] and (after["normalizer"] > 0).all()
    assert (after["positive_set"] >= 0).all()
    assert 0 <= result.final["positive_precision"] <= 1


@pytest.mark.slow
def test_sharded_over_two_processes_it_learns_and_warms_up_the_same(videos, tmp_path):
    plain = ["optim.name=sgd", "optim.lr=0.001", "train.log_every=1"]  # Adam amplifies rounding where gradients vanish
    sharded, whole, log = tmp_path / "sharded", tmp_path / "whole", tmp_path / "stderr"
    process = start(run_in_float64, sharded, videos, *plain, processes=2, config="fsdp2", cpu=False, log=log)
    assert process.wait(timeout=300) == 0, log.read_text()[-3000:]
    run_in_float64(whole, videos, *plain)
    found = [[m["loss"] for m in read_metrics(o / "metrics.jsonl") if "loss" in m] for o in (sharded, whole)]
    assert len(found[0]) == 6 and found[0] == pytest.approx(found[1], rel=1e-5)
    kept, expected = read_weights(find_weights(sharded)), checkpoint(whole)
    assert kept.keys() == expected.keys()
    for name in ("video_memory", "audio_memory"):
        assert torch.nn.functional.cosine_similarity(kept[name], expected[name]).min() > 0.99, name
    # CMA from the sharded checkpoint, on one process, takes over its memories and normalizers.
    run_in_float64(
        tmp_path / "cma", videos, f"train.init_from={sharded}", "model.cma=true", "optim.lr=0", "train.steps=1"
    )
    after = checkpoint(tmp_path / "cma")
    assert (after["video_memory"] != kept["video_memory"].float()).any(1).sum() == 8, "the rows of one batch"
    assert after["normalizer"][0] == kept["normalizer"][0].float()


@pytest.mark.parametrize("part", ["model", pytest.param("model/pretraining", marks=pytest.mark.slow)])
def test_an_exported_model_has_its_memories_refilled(part, avid, videos, tmp_path):
    exported = tmp_path / "elsewhere"
    shutil.copytree(avid[1].model_dir, exported / "model")  # without the run's checkpoints
    place = exported / part
    run(tmp_path / "cma", videos, f"train.init_from={place}", "model.cma=true", "optim.lr=0", "train.steps=1")
    after, before = checkpoint(tmp_path / "cma"), checkpoint(avid[0])
    own = torch.nn.functional.cosine_similarity(after["audio_memory"], before["audio_memory"])
    assert own.mean() > 0.3, "what the trained encoder says; random rows would give 0 within 0.05"


def test_a_warm_start_from_another_model_names_what_does_not_fit(avid, videos, tmp_path):
    with pytest.raises(RecipeError, match="projector"):
        run(tmp_path / "other", videos, f"train.init_from={avid[0]}", "model.projector_dims=[24,16]")
    with pytest.raises(RecipeError, match="has no weights"):
        run(tmp_path / "other", videos, f"train.init_from={tmp_path}")


def test_evaluate_both_towers_and_retrieval(avid, videos, capsys):
    common = [str(avid[0]), "--data", str(videos), "--clips", "2", "--num-workers", "0", "--json"]
    for protocol, keys in (
        ("knn", {"knn_video", "knn_audio", "bank", "queries"}),
        ("linear", {"linear_video", "linear_audio"}),
        ("retrieval", {"video_to_audio_r1", "audio_to_video_p1", "examples", "map_video", "map_audio"}),
    ):
        main(["evaluate", protocol, *common])
        found = json.loads(capsys.readouterr().out)
        assert keys <= found.keys() and not found["failed"]
        assert keys - {"bank", "queries", "examples"} <= found["errors"].keys()
        assert all(0 <= value <= 1 for key, value in found.items() if key in keys and key.startswith(protocol))


def test_evaluate_sound_alone_by_folds(avid, tmp_path, capsys):
    import wave

    import numpy as np
    from datasets import Audio, Dataset

    files = []
    for i in range(12):
        tone = np.sin(2 * np.pi * (2000, 300)[i % 2] * np.arange(8000) / 8000)
        with wave.open(str(tmp_path / f"{i}.wav"), "wb") as out:
            out.setnchannels(1), out.setsampwidth(2), out.setframerate(8000)
            out.writeframes((tone * 9000).astype(np.int16).tobytes())
        files.append(str(tmp_path / f"{i}.wav"))
    columns = {"audio": files, "label": [i % 2 for i in range(12)], "fold": [i // 4 for i in range(12)]}
    Dataset.from_dict(columns).cast_column("audio", Audio()).save_to_disk(tmp_path / "tones")
    arguments = [
        str(avid[0]),
        "--data",
        str(tmp_path / "tones"),
        "--folds",
        "fold",
        "--clips",
        "2",
        "--num-workers",
        "0",
    ]
    main(["evaluate", "linear", *arguments, "--classifier", "svm", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["linear_audio"] == 1.0 and "linear_video" not in found and found["examples"] == 12


def test_a_folder_of_sounds_is_evaluated_by_the_audio_tower(avid, tmp_path, capsys):
    import wave

    import numpy as np

    for i in range(12):
        tone = np.sin(2 * np.pi * (2000, 300)[i % 2] * np.arange(8000) / 8000)
        folder = tmp_path / ("train", "test")[i > 7] / ("high", "low")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        with wave.open(str(folder / f"{i}.wav"), "wb") as out:
            out.setnchannels(1), out.setsampwidth(2), out.setframerate(8000)
            out.writeframes((tone * 9000).astype(np.int16).tobytes())
    arguments = [str(avid[0]), "--data", str(tmp_path), "--clips", "2", "--num-workers", "0", "--no-baselines"]
    main(["evaluate", "knn", *arguments, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["knn_audio"] == 1.0 and "knn_video" not in found and found["queries"] == 4
    main(["evaluate", "retrieval", *arguments, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["map_audio"] == 1.0 and found["errors"]["map_audio"] == 0 and found["examples"] == 4
    assert not [name for name in found if "video" in name]  # no tower without data, and no pairs


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("knn --layer -2", "two towers, which --layer does not support"),
        ("finetune", "has the towers video and audio, but finetune trains on images only"),
        ("linear --protocol swav", "has the towers video and audio, but linear trains on images only"),
    ],
)
def test_what_is_for_images_alone_is_refused(avid, videos, capsys, arguments, said):
    protocol, *more = arguments.split()
    with pytest.raises(SystemExit):
        main(["evaluate", protocol, str(avid[0]), "--data", str(videos), *more])
    assert said in capsys.readouterr().err


def test_a_stream_of_videos_trains_too(videos, tmp_path):
    result = run(tmp_path / "run", videos, "data.streaming=true", "data.partitions=4", "train.steps=3")
    assert checkpoint(tmp_path / "run")["video_memory"].shape == (24, 16)
    assert "embedding_std" in result.final


def plain(videos: Path, folder: Path) -> Path:
    """The same videos without class folders."""
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True)
        for file in (videos / split).rglob("*.mp4"):
            shutil.copy(file, folder / split / f"{file.parent.name}{file.name}")
    return folder


def test_clips_without_labels_are_monitored_by_retrieval_alone(videos, tmp_path):
    folder = plain(videos, tmp_path / "plain")
    for name, more in (("own", []), ("other", [f"data.path={videos}", f"monitor.path={folder}"])):
        final = run(tmp_path / name, folder, *more, "train.steps=1").final
        assert "video_to_audio_r1" in final and not {"video_to_audio_p1", "knn_video"} & final.keys()


@pytest.mark.parametrize("label", [-1, None])
def test_labels_that_are_kept_secret_do_not_stop_cma(label, videos, tmp_path):
    files = sorted(map(str, (videos / "train").rglob("*.mp4")))
    columns = {"video": [{"path": file, "bytes": None} for file in files], "label": [label] * len(files)}
    features = Features({"video": Video(), "label": Value("int64")})
    Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / "secret")
    final = run(tmp_path / "run", tmp_path / "secret", "model.cma=true", "train.steps=1").final
    assert "embedding_std" in final and "positive_precision" not in final


@pytest.mark.parametrize(
    "more, said",
    [
        (("model.num_instances=5",), "model.num_instances=5, but the data have 24 clips"),
        (("model.cma=true", "model.num_positives=32"), "24 leaves no negatives, since 32"),
    ],
)
def test_a_wrong_number_of_clips_is_said_in_a_sentence(more, said, videos, tmp_path):
    with pytest.raises(RecipeError, match=said):
        run(tmp_path / "run", videos, *more)


def test_a_run_does_not_go_on_with_other_clips(videos, tmp_path):
    folder = plain(videos, tmp_path / "plain")
    run(tmp_path / "run", folder, "train.steps=1")
    next((folder / "train").iterdir()).unlink()
    with pytest.raises(RecipeError, match="have 23 clips, but the run in .* started with 24"):
        run(tmp_path / "run", folder, "train.steps=1")


def test_a_refill_reaches_the_clips_that_no_whole_batch_of_an_epoch_has(avid, videos, tmp_path):
    place = tmp_path / "elsewhere"
    shutil.copytree(avid[1].model_dir, place)
    more = (f"train.init_from={place}", "train.batch_size=14", "optim.lr=0", "train.steps=1", "train.seed=7")
    run(tmp_path / "run", videos, *more)
    after, before = checkpoint(tmp_path / "run"), checkpoint(avid[0])
    own = torch.nn.functional.cosine_similarity(after["audio_memory"], before["audio_memory"])
    assert own[10:].mean() > 0.3 and own.sort().values[:10].mean() > 0.1, own


def test_evaluate_says_what_is_missing(avid, videos, tmp_path, monkeypatch, capsys):
    def said(protocol: str, data: Path, *more: str) -> str:
        with pytest.raises(SystemExit):
            main(["evaluate", protocol, str(avid[0]), "--data", str(data), "--num-workers", "0", *more])
        return capsys.readouterr().err

    broken = tmp_path / "broken"
    for split in ("train", "test"):
        for name in "ab":
            (broken / split / name).mkdir(parents=True)
            (broken / split / name / "x.mp4").write_bytes(b"123" * 100)
    for protocol in ("knn", "retrieval"):
        assert "None of the 2 files could be read, the first is" in said(protocol, broken)
    assert "has no labels" in said("knn", plain(videos, tmp_path / "plain"))
    monkeypatch.setitem(sys.modules, "av", None)
    assert "PyAV, which is not installed" in said("linear", videos)


def test_folds_are_those_of_the_split_that_is_judged(avid, videos, tmp_path, capsys):
    for split, count in (("train", 6), ("test", 8)):
        (tmp_path / "table" / split).mkdir(parents=True)
        rows = ["file_name,label,fold"]
        for i, file in enumerate(sorted((videos / "test").rglob("*.mp4"))[:count]):
            shutil.copy(file, tmp_path / "table" / split / f"{i}.mp4")
            rows.append(f"{i}.mp4,{-1 if i == 7 else i % 2},{'ab'[i // 4]}")
        (tmp_path / "table" / split / "metadata.csv").write_text("\n".join(rows))
    common = [str(avid[0]), "--data", str(tmp_path / "table"), "--num-workers", "0", "--clips", "1", "--json"]
    main(["evaluate", "linear", *common, "--folds", "fold", "--bank-split", "test"])
    found = json.loads(capsys.readouterr().out)
    assert found["examples"] == 8 and 0 <= found["linear_video"] <= 1
