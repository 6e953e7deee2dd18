# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""What goes into a bug report: true, without secrets, and also where something is missing."""

import json
import sys

import psutil
import torch

from hf_ssl import __version__
from hf_ssl.cli import main
from hf_ssl.environment import environment, text


def test_it_tells_versions_and_the_machine_and_no_token(monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("WANDB_API_KEY", "another_secret")
    main(["env"])
    said = capsys.readouterr().out
    assert f"torch {torch.__version__}" in said and __version__ in said and "HF_TOKEN" in said
    main(["env", "--json"])
    as_json = capsys.readouterr().out
    assert json.loads(as_json)["memory_gib"]["total"] == round(psutil.virtual_memory().total / 2**30, 1)
    assert "secret" not in said + as_json


def test_missing_packages_are_named(monkeypatch):
    for name in ("torch", "av", "psutil", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("hf_ssl.environment.PACKAGES", ("no_such_package",))
    found = environment()
    assert found["devices"] is found["ffmpeg"] is found["memory_gib"] is None
    assert "no_such_package" in text(found)
