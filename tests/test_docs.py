# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""What README and docs tell people to type works: commands parse, keys exist, files are there, Python runs."""

import argparse
import ast
import re
import runpy
import shlex
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from PIL import Image

from hf_ssl.cli import build_parser
from hf_ssl.recipe import Recipe, load_recipe, shipped_recipes
from hf_ssl.resolve import resolve
from hf_ssl.training.choices import stand_in
from hf_ssl.training.pretrain import pretrain
from tests.conftest import digit_dataset
from tests.methods import few_steps


ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
OF_RECIPES = ("pretrain", "preview", "plan", "bench")
ROOMS = [
    {"cli"},
    {"plan", "preview", "bench", "report"},
    {"training"},
    {"evaluation", "hub"},
    {"data", "optim"},
    {"models"},
]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), flags=re.M | re.S)


def commands(page: Path) -> list[list[str]]:
    """Simple commands of a page's shell blocks, as lists of words."""
    found = []
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while "&&" in words:
                found.append(words[: words.index("&&")])
                words = words[words.index("&&") + 1 :]
            found.append(words)
    return [words for words in found if words]


def called(words: list[str]) -> list[str] | None:
    """The arguments of hf-ssl in a command, directly or behind a launcher."""
    if words[0] == "hf-ssl":
        return words[1:]
    if "-m" in words and words[words.index("-m") + 1] == "hf_ssl":
        return words[words.index("-m") + 2 :]
    scripts = [i for i, word in enumerate(words) if word.startswith("recipes/cluster/")]
    return ["pretrain", *words[scripts[0] + 1 :]] if scripts and words[0] in ("sbatch", "bash") else None


def written_recipe(page: Path, folder: Path, name: str) -> Path:
    """A recipe that the page itself shows, and the method that it names."""
    for block in blocks(page, "yaml"):
        if "method" in (content := yaml.safe_load(block)):
            file, _, _ = content["method"].partition(":")
            if file.endswith(".py"):
                (folder / file).write_text(blocks(page, "python")[0])
            (folder / name).write_text(block)
            return folder / name
    raise AssertionError(f"{page.name} names {name} and shows no such recipe")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_parse_and_their_recipes_have_the_keys(page, tmp_path, monkeypatch):
    for words in commands(page):
        for word in words:  # files of the repository
            if re.match(r"(recipes|docs|examples|tests|model_cards|\.ci)/", word):
                assert (ROOT / word).exists(), f"{word} is not there: {shlex.join(words)}"
        arguments = called(words)
        if words[:2] == ["accelerate", "launch"]:
            launch_command_parser().parse_args(words[2:])
        if arguments is None:
            continue
        try:
            args = build_parser().parse_args(arguments)
        except SystemExit:
            pytest.fail(f"{page.name}: {shlex.join(words)}")
        if arguments[0] in OF_RECIPES:
            ships = args.recipe.removesuffix(".yaml") in shipped_recipes()
            file = args.recipe if ships else written_recipe(page, tmp_path, args.recipe)
            recipe = load_recipe(file, args.overrides)
            if "init_from" not in recipe.model:
                resolve(stand_in(recipe))


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    return next((a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction)), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_within_a_sentence_name_what_there_is(page):
    for text in re.findall(r"`hf-ssl ([^`]+)`", page.read_text().replace("\n", " ")):
        command, parser = [], build_parser()
        for word in text.split():
            if word in subcommands(parser):
                parser, command = subcommands(parser)[word], [*command, word]
        assert command or text.startswith(("--help", "COMMAND")), f"{page.name}: hf-ssl {text}"
        for option in re.findall(r"(?<=\s)--[a-z-]+", text):
            parsers = [parser, *subcommands(parser).values()]
            assert any(option in one._option_string_actions for one in parsers), f"{page.name}: hf-ssl {text}"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder in which runs/quickstart has ended, on the smallest network there is."""
    folder = tmp_path_factory.mktemp("docs")
    data = digit_dataset(0, 32)
    pretrain(few_steps("simsiam", folder / "quickstart", "monitor.every=0"), dataset=data)
    (folder / "runs").mkdir()
    (folder / "quickstart").rename(folder / "runs" / "quickstart")
    Image.new("RGB", (64, 48)).save(folder / "photo.jpg")
    return folder


PYTHON = [(page, i) for page in PAGES for i in range(len(blocks(page, "python")))]


@pytest.mark.parametrize(("page", "number"), PYTHON, ids=lambda value: getattr(value, "stem", value))
def test_python_of_the_docs_compiles_and_runs_where_it_takes_seconds(page, number, workplace, monkeypatch):
    code = blocks(page, "python")[number]
    compiled = compile(code, f"{page.name}[{number}]", "exec")
    if "pretrain(" in code or set(re.findall(r"runs/\w+", code)) - {"runs/quickstart"}:
        return
    monkeypatch.chdir(workplace)
    monkeypatch.setitem(sys.modules, "of_the_docs", type(sys)("of_the_docs"))
    exec(compiled, vars(sys.modules["of_the_docs"]))


def make_reference() -> dict:
    return runpy.run_path(str(ROOT / "docs" / "make_reference.py"))


def test_the_generated_reference_and_schema_are_current_and_leave_no_key_without_a_meaning():
    made = make_reference()
    assert made["PAGE"].read_text() == made["page"](), "run `make docs`"
    assert made["SCHEMA"].read_text() == made["schema"](), "run `make docs`"
    text = made["page"]()
    assert all(f"## `{field.name}`" in text or f"| `{field.name}` |" in text for field in fields(Recipe))
    silent = re.findall(r"^\| (`\w+`) .*\|  \|$", text, flags=re.M)
    assert not silent, f"no meaning: {silent}"


def test_an_editor_accepts_what_ships_and_marks_a_wrong_key():
    jsonschema = pytest.importorskip("jsonschema")
    schema = yaml.safe_load((ROOT / "recipes" / "schema.json").read_text())
    validator = jsonschema.Draft7Validator(schema)
    for name in shipped_recipes():
        recipe = load_recipe(name).to_dict() | {"name": None}
        errors = [f"{name}: {error.json_path} {error.message}" for error in validator.iter_errors(recipe)]
        assert not errors, errors
    wrong = [
        {"method": "byol", "train": {"epoch": 3}},
        {"method": "byol", "model": {"num_prototypes": 3}},
        {"method": "swav", "optim": {"name": "larz"}},
        {"method": "swav", "views": {"all": {"scale": [0.1]}}},
        {"train": {"epochs": 3}},
    ]
    assert all(list(validator.iter_errors(recipe)) for recipe in wrong)
    assert validator.is_valid({"method": "mine.py:Mine", "model": {"anything": 1}, "train": {"track": "trackio"}})


def imported_rooms(file: Path) -> set[str]:
    """Modules and packages directly below hf_ssl that a file imports when it is imported."""
    package, found = file.relative_to(ROOT).parts[:-1], set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.level:
            path = [*package[: len(package) - node.level + 1], *filter(None, (node.module or "").split("."))]
            found |= {path[1]} if len(path) > 1 else {alias.name for alias in node.names}
    return found


def test_rooms_import_rooms_below_them_as_the_architecture_page_says():
    floor = {room: number for number, rooms in enumerate(ROOMS) for room in rooms}
    for file in sorted((ROOT / "hf_ssl").rglob("*.py")):
        own = file.relative_to(ROOT / "hf_ssl").with_suffix("").parts[0]
        others = imported_rooms(file) - {own}
        if own == "models":
            assert not others, f"{file.name} travels with exported models and imports {others}"
        above = {room for room in others & floor.keys() if own in floor and floor[room] < floor[own]}
        assert not above, f"{file} imports {above}"
