# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Recipe files: shipped ones, users' own, and `a.b=c` overrides."""

import logging
import os
import re
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from datetime import date
from difflib import SequenceMatcher
from itertools import takewhile
from pathlib import Path
from typing import Any, get_args, get_type_hints

from ..coerce import nearest
from ..errors import RecipeError, UserError
from ..files import read_text, read_yaml
from .checks import METHODS, recipe_from_dict
from .sections import Places, Recipe, flatten


logger = logging.getLogger(__name__)

_LAUNCH = ("accelerate", "cluster")  # folders without recipes
_COPIED = (".yaml", ".sbatch", ".sh", ".py")


def load_recipe(source: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Read a recipe by path or by name ("quickstart", "swav/imagenet1k_resnet50"), with `a.b=c` overrides.

    Raises:
        RecipeError: no such recipe, bad YAML, unknown key, wrong type or impossible value.
    """
    path = find_recipe(source)
    content = read_yaml(read_text(path), str(path)) or {}
    if not isinstance(content, dict):
        raise RecipeError(f"{path} must be a mapping of sections (method, data, model, train ...).")
    _use_method(content, overrides, path)
    for override in overrides:
        apply_override(content, override)
    recipe = recipe_from_dict(content)
    if recipe.train.epochs != "auto" and any(override.startswith("train.minutes=") for override in overrides):
        epochs = recipe.train.epochs
        raise RecipeError(f"train.minutes counts only with train.epochs=auto, not with {epochs}; set that as well.")
    method, name, data, monitor, train = recipe.method, recipe.name, recipe.data, recipe.monitor, recipe.train
    file, colon, class_name = method.rpartition(":")
    if colon:
        from ..methods import load_method  # slow import, only needed here

        method = f"{_locate_data(file, path.parent)}:{class_name}"
        load_method(method)
    root = recipes_folder().resolve()
    if path.resolve().is_relative_to(root):
        name = str(path.resolve().relative_to(root).with_suffix(""))
    if isinstance(data.path, Places):
        located = (replace(place, path=_locate_data(place.path, path.parent)) for place in data.path)
        data = replace(data, path=tuple(located))
    elif isinstance(data.path, str):
        data = replace(data, path=_locate_data(data.path, path.parent))
    if monitor.path is not None:
        monitor = replace(monitor, path=_locate_data(monitor.path, path.parent))
    if train.output_dir is None:
        train = replace(train, output_dir=str(Path("runs") / path.stem))
    return replace(recipe, method=method, name=name, data=data, monitor=monitor, train=train)


def recipes_folder() -> Path:
    """Folder of the shipped recipes: next to the package in a checkout, inside it in a wheel."""
    inside = Path(__file__).parents[1] / "recipes"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """Map from the name ("swav/imagenet1k_resnet50") of each shipped training recipe to its file."""
    root = recipes_folder()
    found = {str(p.relative_to(root).with_suffix("")): p for p in sorted(root.rglob("*.yaml"))}
    return {name: path for name, path in found.items() if name.split("/")[0] not in _LAUNCH}


def recipe_header(path: Path) -> dict[str, str]:
    """Parse a recipe's comment header: its title and `# Key: value` lines (Published, Source, Hardware)."""
    comments = takewhile(lambda line: line.startswith("#"), path.read_text().splitlines())
    title, *lines = [line.lstrip("# ").rstrip() for line in comments] or [path.stem]
    matches = [re.match(r"([A-Z][a-z]+): (.+)", line) for line in lines]
    return {"Title": title} | {match[1]: match[2] for match in matches if match}


def find_recipe(source: str | Path) -> Path:
    """Path of a recipe, given as a file or as the name of a shipped recipe.

    Raises:
        RecipeError: it is neither, and the message suggests names; or a file here could be meant as well.
    """
    path = Path(source)
    with suppress(OSError):  # the name is too long for a path
        if path.is_file():
            return path
    shipped = shipped_recipes()
    name = str(source).removesuffix(".yaml").removeprefix("recipes/")
    if name in shipped:
        own, taken = Path(f"{source}.yaml"), shipped[name]
        if own.is_file() and own.read_bytes() != taken.read_bytes():
            raise RecipeError(f"{source} is {own} here or the recipe that ships: say {own} or recipes/{name}.")
        return taken
    raise RecipeError(
        f"There is no recipe {str(source)!r}; the nearest are {', '.join(_nearest(name, shipped))}. `hf-ssl recipes` "
        "lists all; you can also pass a YAML file."
    )


def _use_method(content: dict[str, Any], overrides: list[str] | tuple[str, ...], path: Path) -> None:
    """Apply `method=` from the command line: use the method's entries of the section `methods`, and drop fields of
    `model` that belong to another method.
    """
    first = content.get("method")
    typed = {key: text for key, _, text in (override.partition("=") for override in overrides)}
    method = typed.get("method", first)
    own, model = content.pop("methods", None) or {}, content.get("model")
    if not isinstance(own, dict) or not all(isinstance(part, dict | None) for part in own.values()):
        raise RecipeError(f"methods in {path} must be a mapping with a section per method.")
    if not isinstance(method, str):
        return  # refused with its type later
    if method != first and method in METHODS and first in METHODS and isinstance(model, dict):
        from ..methods import method_classes  # slow import, only needed here

        known = {field.name for field in fields(method_classes(method)[0])} | {"init_from"}
        foreign = [key for key in model if key not in known]
        if foreign:
            logger.info(f"method={method}: ignoring {', '.join(f'model.{key}' for key in foreign)} (for {first}).")
        content["model"] = {key: value for key, value in model.items() if key in known}
    changes = {str(key): value for key, value in flatten(own.get(method) or {}).items()}
    for key, value in changes.items():
        _set_key(content, key, value)
    if method != first and changes:
        said = ", ".join(f"{key}={value}" for key, value in changes.items() if key not in typed)
        logger.info(f"method={method} from {path.name}: {said}.")


def _nearest(name: str, shipped: dict[str, Path]) -> list[str]:
    """The three most similar names, compared as a whole or by their last part."""

    def likeness(known: str) -> float:
        parts = (known, known.rpartition("/")[2])
        return max(SequenceMatcher(None, name.lower(), part).ratio() for part in parts)

    return sorted(shipped, key=likeness, reverse=True)[:3]


def apply_override(content: dict, override: str) -> None:
    """Apply an override `a.b=c` to nested dicts.

    Raises:
        RecipeError: it has no `=`, or its value is not valid YAML.
    """
    key, separator, text = override.partition("=")
    if not separator or not key:
        example = f"data.path={override}" if os.path.exists(override) else "train.batch_size=512"
        raise RecipeError(f"{override!r} is not an override; write key=value, for example {example}.")
    value = read_yaml(text, f"The value of {key}")
    # A folder may be named 2024, 007 or 2024-05-01.
    _set_key(content, key, text.strip() if _is_number(value) and _is_text(key) else value)


def _set_key(content: dict, key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        content = content.setdefault(section, {})
        if not isinstance(content, dict):
            raise RecipeError(f"{key!r} cannot be set: {section!r} is not a section.")
    content[last] = value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | date) and not isinstance(value, bool)


def _is_text(key: str) -> bool:
    """Whether a dotted key is text, so that numbers and dates in YAML are read as text."""
    hint: Any = Recipe
    for name in key.split("."):
        hint = get_type_hints(hint).get(name) if is_dataclass(hint) else None
    choices = get_args(hint) or (hint,)
    return str in choices or key == "model.init_from"


def _locate_data(path: str, folder: Path) -> str:
    """Look for a relative path in the recipe's folder if it does not exist in the working directory."""
    if not os.path.exists(path) and os.path.exists(folder / path):
        return str(folder / path)
    return shipped_data(path)


def shipped_data(path: str) -> str:
    """Resolve "quickstart" to the photographs that ship with the package; other paths are unchanged."""
    return str(recipes_folder() / path) if path == "quickstart" and not os.path.exists(path) else path


def copy_shipped(name: str, folder: str | Path) -> Path:
    """Copy a recipe or launch file ("accelerate/ddp", "cluster/seer"); launch files go to `recipes/` in the folder.

    Raises:
        UserError: unknown name, or the file already exists.
    """
    root, wanted = recipes_folder(), name.removeprefix("recipes/")
    found = {str(p.relative_to(root)): p for p in sorted(root.rglob("*.*")) if p.suffix in _COPIED}
    by_name = {str(Path(file).with_suffix("")): path for file, path in found.items()}
    source = found.get(wanted) or by_name.get(wanted)
    if source is None:
        raise RecipeError(f"There is no file {name!r} to copy{nearest(wanted, by_name)}")
    inside = source.relative_to(root)
    target = Path(folder).expanduser() / (Path("recipes") / inside if inside.parts[0] in _LAUNCH else source.name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "x", encoding="utf-8") as file:
            file.write(source.read_text(encoding="utf-8"))
    except FileExistsError:
        raise UserError(
            f"{target} exists already and was not overwritten; choose another folder with --copy."
        ) from None
    except OSError as error:
        raise UserError(f"{target} cannot be written ({error.strerror}).") from error
    return target
