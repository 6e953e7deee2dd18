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


@pytest.mark.slow
def test_an_installed_wheel_finds_its_recipes_photographs_and_template(tmp_path):
    source, target = tmp_path / "source", tmp_path / "site"
    ignored = shutil.ignore_patterns(".git", "build", "runs", "*.egg-info", ".venv", "__pycache__", "tests")
    shutil.copytree(ROOT, source, ignore=ignored)
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target), str(source)]
    subprocess.run(install, check=True, capture_output=True, timeout=300)
    env = {**os.environ, "PYTHONPATH": str(target)}
    done = subprocess.run([sys.executable, "-c", PROBE], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert Path(found["package"]).is_relative_to(target)
    assert found["recipes"] == sorted(
        str(p.relative_to(ROOT / "recipes").with_suffix(""))
        for p in (ROOT / "recipes").rglob("*.yaml")
        if p.parent.name != "accelerate"
    )
    assert found["photographs"] == ["test.parquet", "train.parquet"]
    assert found["template"] and "grill2020byol" in found["citation"]
    assert found["cards"] == sorted(str(p.relative_to(ROOT / "model_cards")) for p in ROOT.glob("model_cards/*/*.md"))
    assert found["cards"]
    assert (target / "bin" / "hf-ssl").exists()
