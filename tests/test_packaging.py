# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""What a wheel holds: recipes found by name, the quickstart's photographs, the cards and their template."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]

PROBE = """
import json, pathlib, hf_ssl
from hf_ssl.hub.card import bibtex, templates_folder
from hf_ssl.recipe import load_recipe, shipped_recipes
recipe = load_recipe("quickstart")
print(json.dumps({
    "package": hf_ssl.__file__,
    "recipes": sorted(shipped_recipes()),
    "photographs": sorted(p.name for p in pathlib.Path(recipe.data.path).glob("*.parquet")),
    "template": (templates_folder() / "template.md").exists(),
    "cards": sorted(str(p.relative_to(templates_folder())) for p in templates_folder().rglob("*/*.md")),
    "citation": bibtex("byol"),
}))
"""


SDIST = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """Where the wheel of the sdist of this checkout is installed."""
    folder = tmp_path_factory.mktemp("packages")
    source, tools, target = folder / "source", folder / "tools", folder / "site"
    ignored = shutil.ignore_patterns(".git", "build", "runs", "*.egg-info", ".venv", "__pycache__")
    shutil.copytree(ROOT, source, ignore=ignored)
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target"]
    run = {"check": True, "capture_output": True, "timeout": 300}
    subprocess.run([*install, str(tools), "setuptools>=77"], **run)
    env = {**os.environ, "PYTHONPATH": str(tools)}
    subprocess.run([sys.executable, "-c", SDIST, str(folder)], cwd=source, env=env, **run)
    (sdist,) = folder.glob("*.tar.gz")
    subprocess.run([*install, str(target), str(sdist)], **run)
    return target


@pytest.mark.slow
def test_what_is_installed_runs_the_quickstart_outside_of_a_checkout(installed, tmp_path):
    env = {**os.environ, "PYTHONPATH": str(installed)}
    few = [
        "train.epochs=null",
        "train.steps=2",
        "optim.warmup_epochs=0",
        "monitor.max_bank=64",
        "monitor.max_queries=32",
    ]
    command = [sys.executable, "-m", "hf_ssl", "pretrain", "quickstart", *few]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (
        tmp_path / "runs/quickstart/model/model.safetensors"
    ).exists() and "kNN accuracy" in done.stdout + done.stderr


@pytest.mark.slow
def test_an_installed_wheel_finds_its_recipes_photographs_and_template(installed, tmp_path):
    env = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run([sys.executable, "-c", PROBE], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert Path(found["package"]).is_relative_to(installed)
    assert found["recipes"] == sorted(
        str(p.relative_to(ROOT / "recipes").with_suffix(""))
        for p in (ROOT / "recipes").rglob("*.yaml")
        if p.parent.name not in ("accelerate", "cluster")
    )
    assert found["photographs"] == ["test.parquet", "train.parquet"]
    assert found["template"] and "grill2020byol" in found["citation"]
    assert found["cards"] == sorted(str(p.relative_to(ROOT / "model_cards")) for p in ROOT.glob("model_cards/*/*.md"))
    assert found["cards"]
    assert (installed / "bin" / "hf-ssl").exists()
