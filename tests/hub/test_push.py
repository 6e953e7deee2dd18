# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""The real Hub client pushes every method to a local Hub and downloads it where hf_ssl is not installed."""

import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch

from hf_ssl.hub.card import Results
from hf_ssl.hub.export import export
from hf_ssl.models import METHODS
from hf_ssl.recipe import recipe_from_dict
from hf_ssl.resolve import model_config
from tests.fresh import interpreter
from tests.hub.fake_hub import TOKEN, FakeHub
from tests.methods import PREFIXES, fields


CASES = {
    **{method: fields(method) for method in PREFIXES},
    "swav-small-stem": fields("swav", "resnet10t", stem="small"),
    "byol-same-padding": fields("byol", "resnet10t", padding="same"),
}
RESULTS = Results({"loss": 2.0}, {"loss": 1.0}, 48, 3, 5.0, "1 CPU process(es)", {"torch": torch.__version__})

PULL = """
import sys
import zlib
sys.modules["hf_ssl"] = None  # importing it fails, as where it is not installed
import torch
from PIL import Image
from transformers import (AutoFeatureExtractor, AutoImageProcessor, AutoModel, AutoModelForImageClassification,
                          AutoModelForPreTraining, AutoProcessor, AutoVideoProcessor, pipeline)
repo, inputs_file, output_file, kind = sys.argv[1:]
inputs, results = torch.load(inputs_file), {}
trust = {} if kind == "plain" else {"trust_remote_code": True}
torch.set_grad_enabled(False)
encoder = AutoModel.from_pretrained(repo, **trust)
whole, report = AutoModelForPreTraining.from_pretrained(
    repo, subfolder="pretraining", trust_remote_code=True, output_loading_info=True
)
results["report"] = {key: sorted(map(str, found)) for key, found in report.items()}
if kind == "avid":
    output = encoder(**inputs)
    results |= {"video_embeds": output.video_embeds, "audio_embeds": output.audio_embeds}
    results["embeddings"] = whole(**inputs).embeddings
    results["sound"] = AutoFeatureExtractor.from_pretrained(repo, **trust)(
        torch.zeros(4000).numpy(), sampling_rate=encoder.config.sampling_rate, return_tensors="pt")["input_values"]
    results["video"] = AutoVideoProcessor.from_pretrained(repo, **trust)(
        torch.zeros(8, 3, 40, 40, dtype=torch.uint8), return_tensors="pt")["pixel_values_videos"]
    results["both"] = sorted(AutoProcessor.from_pretrained(repo, **trust).get_attributes())
else:
    results["encoder"] = encoder(pixel_values=inputs["pixel_values"][:, 0]).pooler_output
    results["embeddings"] = whole(**inputs).embeddings
    classifier = AutoModelForImageClassification.from_pretrained(repo, num_labels=7, **trust)
    results["logits"] = classifier(pixel_values=inputs["pixel_values"][:, 0]).logits
    processor = AutoImageProcessor.from_pretrained(repo)
    image = Image.new("RGB", (60, 40), (200, 30, 90))
    results["processor"] = processor(image, return_tensors="pt")["pixel_values"]
    pipe = pipeline("image-feature-extraction", model=repo, **trust)
    results["pipeline"] = torch.tensor(pipe(image, pool=True))
    if kind == "plain":
        import timm
        results["timm"] = timm.create_model(f"hf-hub:{repo}", pretrained=True).eval()(inputs["pixel_values"][:, 0])
torch.save(results, output_file)
"""


# `hf-ssl` without the client's waits between retries, which last half a minute.
HURRIED = "import sys, time; time.sleep = lambda _: None; from hf_ssl.cli import main; main(sys.argv[1:])"


def exported(folder: Path, case: str, seed: int = 0):
    """A repo folder of a method with random weights, and its model."""
    method = case.partition("-")[0]
    recipe = recipe_from_dict({"method": method, "model": CASES[case], "train": {"steps": 3}})
    torch.manual_seed(seed)
    model = METHODS[method][1](model_config(recipe, 32)).eval()
    export(model, recipe, folder, tensors=model.state_dict(), results=RESULTS)
    return model


def environment(hub: FakeHub, home: Path) -> dict[str, str]:
    """Environment of a process that uses `hub` as the Hub."""
    env = {k: v for k, v in os.environ.items() if not k.lower().endswith(("_proxy", "_offline"))}
    return env | hub.environment(home) | {"OMP_NUM_THREADS": "1"}


def client(hub: FakeHub, home: Path, *command: str) -> subprocess.CompletedProcess:
    """Run Python in a fresh process that uses `hub` as the Hub."""
    env = environment(hub, home)
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=env, timeout=300)


@pytest.fixture(scope="module")
def hub():
    with FakeHub() as running:
        yield running


@pytest.fixture(scope="module")
def ours(hub, tmp_path_factory):
    """Python of the user who pushes."""
    with interpreter(environment(hub, tmp_path_factory.mktemp("home"))) as started:
        yield started


@pytest.fixture(scope="module")
def theirs(hub, tmp_path_factory):
    """Python of another user with an empty cache."""
    with interpreter(environment(hub, tmp_path_factory.mktemp("other_home"))) as started:
        yield started


@pytest.mark.parametrize("case", CASES)
def test_what_is_pushed_loads_everywhere_without_hf_ssl(case, hub, ours, theirs, tmp_path):
    model = exported(tmp_path / "model", case)
    done = ours.run("-m", "hf_ssl", "push", str(tmp_path / "model"), f"user/{case}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == f"{hub.address}/user/{case}"
    local = {str(p.relative_to(tmp_path / "model")) for p in (tmp_path / "model").rglob("*") if p.is_file()}
    assert set(hub.files(f"user/{case}")) - {".gitattributes"} == local
    card = hub.files(f"user/{case}")["README.md"].decode()
    assert f'from_pretrained("user/{case}"' in card and "REPO" not in card

    torch.manual_seed(1)
    inputs = {"pixel_values": torch.randn(4, 2, 3, 32, 32)}
    if case == "avid":
        inputs = {"pixel_values_videos": torch.randn(4, 2, 3, 32, 32), "input_values": torch.randn(4, 40, 33)}
    kind = "avid" if case == "avid" else "code" if "-" in case else "plain"
    torch.save(inputs, tmp_path / "inputs.pt")
    files = (str(tmp_path / "inputs.pt"), str(tmp_path / "out.pt"))
    done = theirs.run("-c", PULL, f"user/{case}", *files, kind)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "UNEXPECTED" not in done.stderr
    found = torch.load(tmp_path / "out.pt")
    assert not found["report"]["unexpected_keys"] and not found["report"]["mismatched_keys"]
    close = {"rtol": 1e-5, "atol": 1e-6}
    with torch.no_grad():
        if kind == "avid":
            output = model.encoder(**inputs)
            torch.testing.assert_close(found["video_embeds"], output.video_embeds, **close)
            torch.testing.assert_close(found["audio_embeds"], output.audio_embeds, **close)
            torch.testing.assert_close(found["embeddings"], model(**inputs).embeddings, **close)
            assert found["both"] == ["feature_extractor", "video_processor"]
            assert found["sound"].shape[2] == model.config.num_bands
            assert found["video"].shape[2:] == (3, model.config.image_size, model.config.image_size)
            return
        features = model.encoder(pixel_values=inputs["pixel_values"][:, 0]).pooler_output
        embeddings = model(**inputs).embeddings
    torch.testing.assert_close(found["encoder"], features, **close)
    torch.testing.assert_close(found["embeddings"], embeddings, rtol=1e-4, atol=1e-6)
    assert found["logits"].shape == (4, 7)
    assert found["processor"].shape == (1, 3, 32, 32) and found["pipeline"].shape[-1] == features.shape[1]
    if kind == "plain":
        torch.testing.assert_close(found["timm"], features, **close)


def test_the_model_classes_push_themselves(hub, ours, theirs, tmp_path):
    push = (
        "import sys, torch\n"
        "from hf_ssl import SimSiamConfig, SimSiamForPreTraining\n"
        "model = SimSiamForPreTraining(SimSiamConfig(backbone='test_resnet', image_size=32, projector_dim=32))\n"
        "model.push_to_hub('user/by-itself', private=True)\n"
        "torch.save(model.state_dict(), sys.argv[1])\n"
    )
    done = ours.run("-c", push, str(tmp_path / "state.pt"))
    assert done.returncode == 0, done.stderr[-3000:]
    pull = (
        "import sys, torch\n"
        "sys.modules['hf_ssl'] = None\n"
        "from transformers import AutoModel, AutoModelForPreTraining\n"
        "whole = AutoModelForPreTraining.from_pretrained('user/by-itself', trust_remote_code=True).state_dict()\n"
        "encoder = AutoModel.from_pretrained('user/by-itself', trust_remote_code=True).state_dict()\n"
        "expected = torch.load(sys.argv[1])\n"
        "assert whole.keys() == expected.keys() and all(whole[k].equal(v) for k, v in expected.items())\n"
        "assert all(expected[f'encoder.{k}'].equal(v) for k, v in encoder.items())\n"
    )
    done = theirs.run("-c", pull, str(tmp_path / "state.pt"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert hub.private["user/by-itself"]


def test_a_second_push_is_one_commit_more_and_leaves_no_stale_weights(hub, ours, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("hf_ssl.hub.export.MAX_FILE_SIZE", 400_000)
        exported(tmp_path / "model", "simsiam", seed=7)
    push = ("-m", "hf_ssl", "push", str(tmp_path / "model"), "user/twice")
    assert ours.run(*push).returncode == 0
    assert "model.safetensors.index.json" in hub.files("user/twice")
    hub.branches["user/twice"]["main"] = hub._commit({**hub.files("user/twice"), "picture.png": b"of somebody"})
    before, sent = len(hub.commits), len(hub.log)
    exported(tmp_path / "model", "simsiam", seed=7)
    assert ours.run(*push).returncode == 0
    assert len(hub.commits) == before + 1
    files = hub.files("user/twice")
    assert "model.safetensors" in files and "model.safetensors.index.json" not in files and "picture.png" in files
    assert any("PUT /lfs/" in line for line in hub.log[sent:])
    done = ours.run(*push, "--revision", "second")
    assert done.stdout.strip().endswith("/user/twice/tree/second") and "second" in hub.branches["user/twice"]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({("POST", "/api/repos/create"): 401}, "hf auth login"),
        ({("POST", "/api/repos/create"): 403}, "write access"),
        pytest.param({("POST", "/preupload/"): 403}, "write access", marks=pytest.mark.slow),
        ({("POST", "/commit/"): 409}, "at the same time"),
        ({("POST", "/commit/"): 500}, "again later"),
        pytest.param({("PUT", "/lfs/"): "drop"}, "not sent twice", marks=pytest.mark.slow),  # the client retries
        pytest.param({("PUT", "/lfs/"): 500}, "again later", marks=pytest.mark.slow),
    ],
    ids=["login", "forbidden", "forbidden-files", "conflict", "trouble", "dropped", "storage"],
)
def test_a_fault_of_the_hub_is_one_sentence_and_nothing_half_written(fault, said, hub, ours, tmp_path, request):
    repo = f"user/{request.node.callspec.id}"
    exported(tmp_path / "model", "simsiam", seed=zlib.crc32(repo.encode()))  # weights that the Hub does not have yet
    push = ("-c", HURRIED, "push", str(tmp_path / "model"), repo)
    hub.faults = fault
    try:
        done = ours.run(*push)
    finally:
        hub.faults = {}
    assert list(hub.files(repo) if repo in hub.branches else []) == []
    again = ours.run(*push)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    message = done.stderr[done.stderr.index(f"hf-ssl: {repo} was not published") :].splitlines()[0]
    assert said in message
    assert TOKEN not in done.stderr + done.stdout
    assert again.returncode == 0
    assert "model.safetensors" in hub.files(repo)


def test_what_was_sent_before_a_failure_is_not_sent_again(hub, ours, tmp_path):
    exported(tmp_path / "model", "simsiam", seed=2)
    push = ("-m", "hf_ssl", "push", str(tmp_path / "model"), "user/resumed")
    hub.faults = {("POST", "/commit/"): 409}
    sent = len(hub.log)
    ours.run(*push)
    hub.faults = {}
    first = [line for line in hub.log[sent:] if "PUT /lfs/" in line]
    assert first
    sent = len(hub.log)
    assert ours.run(*push).returncode == 0
    assert not [line for line in hub.log[sent:] if "PUT /lfs/" in line]


def test_what_cannot_be_published_is_said_before_the_network(hub, ours, tmp_path):
    sent = len(hub.log)
    done = ours.run("-m", "hf_ssl", "push", str(tmp_path), "user/x")
    assert done.returncode == 2 and "not an exported model" in done.stderr and len(hub.log) == sent
    exported(tmp_path / "model", "simsiam")
    done = ours.run("-m", "hf_ssl", "push", str(tmp_path / "model"), "user/not a name")
    assert done.returncode == 2 and "user/name" in done.stderr
    with FakeHub() as gone:
        pass  # the server is closed now
    done = client(gone, tmp_path / "home", "-c", HURRIED, "push", str(tmp_path / "model"), "user/x")
    assert done.returncode == 2 and "was not published" in done.stderr and "Traceback" not in done.stderr


def test_a_full_disk_on_download_leaves_nothing_that_loads(hub, ours, theirs, tmp_path):
    exported(tmp_path / "model", "simsiam")
    ours.run("-m", "hf_ssl", "push", str(tmp_path / "model"), "user/full")
    pull = (
        "import resource, signal, sys\n"
        "from hf_ssl.evaluation.encoders import open_model\n"
        "from hf_ssl.recipe import RecipeError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing beyond the limit then fails as on a full disk\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))\n"
        "try:\n"
        "    open_model('user/full')\n"
        "except RecipeError as error:\n"
        "    print(error)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
        "open_model('user/full')\n"
        "print('loaded')\n"
    )
    done = theirs.run("-c", pull)
    assert done.returncode == 0, done.stderr[-3000:]
    said, loaded = done.stdout.strip().splitlines()
    assert "'user/full' could not be loaded as an encoder" in said and loaded == "loaded"
