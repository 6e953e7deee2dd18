# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Rewrite the card of an existing repo folder, with metadata set by the user."""

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub.utils import HFValidationError, validate_repo_id

from ..errors import UserError
from ..files import read_json, read_text, read_yaml
from ..methods import method_classes
from ..recipe import RecipeError, recipe_from_dict
from .card import Results, render_card
from .evaluations import read_evaluations


def kept_card_settings(folder: Path | str) -> dict[str, Any]:
    """Card metadata set earlier in a repo folder; the next export keeps it."""
    try:
        said = read_json(Path(folder) / "results.json")["card"]
    except (RecipeError, KeyError):
        return {}
    return said if isinstance(said, dict) else {}


def refresh_card(
    place: Path | str, *, license: str | None = None, name: str | None = None, datasets: list[str] | None = None
) -> Path:
    """Rewrite README.md of a repo folder from its results.json, recipe.yaml and pretraining/config.json.

    Args:
        place: the folder, or its run's folder.
        license, name, datasets: metadata: the Hub's identifier of a license, the model's name, and Hub ids of the
            training data. They are saved in results.json; an empty value removes an earlier one.

    Raises:
        UserError: no such folder, metadata that the Hub does not accept, or the disk refused the write.
    """
    folder = Path(place)
    folder = folder / "model" if (folder / "model" / "results.json").exists() else folder
    if license and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        raise RecipeError(f"{license!r} is not a Hub license name, such as apache-2.0, cc-by-nc-4.0 or other.")
    try:
        for dataset in filter(None, datasets or ()):
            validate_repo_id(dataset)
    except HFValidationError as error:
        raise RecipeError(f"--datasets takes Hub dataset names, such as uoft-cs/cifar10: {error}") from None
    given = {"license": license, "name": name, "datasets": datasets and [one for one in datasets if one]}
    sharded = (folder / "model.safetensors.index.json").exists()
    try:
        results = Results(**read_json(folder / "results.json"))
        said = results.card | {key: value for key, value in given.items() if value is not None}
        results = replace(results, card={key: value for key, value in said.items() if value})
        recipe = recipe_from_dict(read_yaml(read_text(folder / "recipe.yaml"), "recipe.yaml"))
        content = read_json(folder / "pretraining/config.json")
        config_class = method_classes(recipe.method)[0]
        if content.get("model_type") != config_class.model_type:
            raise ValueError(f"recipe.yaml is for {recipe.method}, but pretraining/config.json is not")
        config = config_class.from_dict(content)
        text = render_card(config, recipe, results, sharded=sharded, evaluations=read_evaluations(folder))
    except Exception as error:  # damaged or foreign files may raise anything
        raise RecipeError(
            f"No card can be made from {place} ({' '.join(str(error).split())}); pass a run's folder or the model "
            "that a run exported, with results.json, recipe.yaml and pretraining/config.json."
        ) from error
    files = {"README.md": text, "results.json": results.to_json()}
    try:
        for file, content in files.items():
            (folder / f".partial_{file}").write_text(content, encoding="utf-8")
            os.replace(folder / f".partial_{file}", folder / file)
    except OSError as error:
        raise UserError(f"The card could not be written to {folder} ({error}).") from error
    return folder / "README.md"
