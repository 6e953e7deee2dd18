# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Cards claim published figures only for published settings and measured ones only for their run."""

import json
import re
import shutil
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.utils import validate_repo_id

from hf_ssl.cli import build_parser, main
from hf_ssl.hub.card import Results, render_card, templates_folder
from hf_ssl.hub.published import differences, published_rows
from hf_ssl.hub.refresh import refresh_card
from hf_ssl.recipe import RecipeError, load_recipe, recipe_header, shipped_recipes
from hf_ssl.resolve import model_config
from hf_ssl.training.choices import stand_in
from model_cards.make_cards import published_configurations, render
from tests.hub.test_export import trained


NAMES = published_configurations()
FOLDER = templates_folder()
DATA = "data.path=uoft-cs/cifar10"  # the runs here do not train on it


def table(text: str, title: str) -> list[list[str]]:
    """Cells of the first table under a heading."""
    section = text.split(f"\n{title}\n")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]
    return [row for row in rows if "---" not in row][1:]


def test_every_published_configuration_has_its_card_and_nothing_else_has():
    cards = {str(p.relative_to(FOLDER).with_suffix("")) for p in FOLDER.rglob("*/*.md")}
    assert cards == set(NAMES) and len(NAMES) == 23


@pytest.mark.parametrize("name", NAMES)
def test_a_card_is_what_its_recipe_makes_it(name):
    assert (FOLDER / f"{name}.md").read_text() == render(name), "run python model_cards/make_cards.py"


@pytest.mark.parametrize("name", NAMES)
def test_a_cards_metadata_are_valid_and_claim_no_result(name):
    card = ModelCard.load(FOLDER / f"{name}.md")
    assert metadata_load(FOLDER / f"{name}.md") == card.data.to_dict()
    assert card.data.eval_results is None and "model-index" not in card.data.to_dict()
    assert card.data.library_name in ("timm", "transformers") and "feature-extraction" in card.data.pipeline_tag
    assert {"self-supervised-learning", name.split("/")[0]} <= set(card.data.tags)
    assert card.data.datasets == (["ILSVRC/imagenet-1k"] if "imagenet1k" in name else None)
    assert (card.data.license == "other") == bool(card.data.get("license_name")) == name.startswith("seer/")
    assert "hf_ssl has not trained this model" in card.text and "$" not in card.text


@pytest.mark.parametrize("name", NAMES)
def test_a_cards_numbers_are_those_of_the_recipe(name):
    text = (FOLDER / f"{name}.md").read_text()
    path = shipped_recipes()[name]
    recipe, header = load_recipe(path), recipe_header(path)
    figures = [row[1] for row in table(text, "## Published results")]
    published = re.findall(r"(?<= )\d\d\.\d+(?=[ ,])", header["Published"])
    others = re.findall(r" (\d\d\.\d+)[;.]", path.read_text().partition("Other results:")[2].partition("# Note:")[0])
    assert figures == published[:1] + others + published[1:] and published
    rows = {row[0]: row[1] for row in table(text, "## How it was trained")}
    length = rows["Length"].replace(",", "").split()
    assert float(length[0]) == (recipe.train.epochs or recipe.train.steps)
    assert length[1] == ("epochs" if recipe.train.epochs else "steps")
    assert int(rows["Batch"].replace(",", "").split()[0]) == recipe.train.batch_size
    optim = recipe.optim
    peak = optim.lr * (recipe.train.batch_size / optim.lr_per if optim.lr_per else 1)
    assert float(re.match(r"[\d.]+", rows["Learning rate"])[0]) == pytest.approx(peak, rel=1e-5)
    assert float(re.search(r"weight decay ([\d.e-]+)", rows["Optimizer"])[1]) == recipe.optim.weight_decay
    for key in (key for key in rows if key.startswith("`model.")):
        field = key.strip("`").removeprefix("model.")
        if field in recipe.model and not isinstance(recipe.model[field], list):
            assert rows[key] == str(recipe.model[field]).lower()


@pytest.mark.parametrize("name", NAMES)
def test_a_cards_commands_are_commands(name):
    text = (FOLDER / f"{name}.md").read_text()
    parse = build_parser().parse_args
    pretrain = re.findall(r"-m hf_ssl (pretrain) \\\n +(\S+)(?: (data\S+))?", text)
    assert pretrain[-1][1] == name and all(parse([p for p in words if p]) for words in pretrain)
    evaluate = re.search(r"^hf-ssl (evaluate .+)$", text, re.MULTILINE)[1]
    assert parse(evaluate.split()).models == [f"runs/{name.split('/')[1]}"]
    for method in re.findall(r"hf-ssl convert FILE --method (\S+)", text):
        assert method in ("avid", "barlow_twins", "byol", "simsiam", "swav", "vissl")


def card_of(name: str, overrides=(), final=None, card=None, measured=None) -> ModelCard:
    """The card of a hypothetical run on 100 images."""
    recipe = stand_in(load_recipe(name, overrides))
    final = {"loss": 1.0, "embedding_std": 0.9} if final is None else final
    results = Results({}, final, 100, 5, 90.0, "1 CPU process(es)", {"Python": "3"}, card or {}, measured or {})
    return ModelCard(render_card(model_config(recipe, 224), recipe.shareable(), results))


def test_the_published_figure_stands_beside_a_run_with_its_settings():
    card = card_of("simsiam/imagenet1k_resnet50", ["train.batch_size=256", "train.epochs=400"], {"knn": 0.6})
    assert table(card.text, "## Comparison with published results") == [["linear top-1", "not measured", "70.8%"]]
    assert "used the settings of the published figure" in card.text
    assert card.data.eval_results[0].metric_value == 60.0 and "70.8" not in str(card.data.to_dict())
    card = card_of("byol/cifar10_resnet18_lightly", ["train.seed=3", "data.num_workers=1"], {"knn": 0.851})
    assert table(card.text, "## Comparison with published results") == [["kNN", "85.1%", "86.9%"]]
    assert "used the settings of the published figure" in card.text


def test_a_run_with_other_settings_names_them():
    changes = [
        "train.epochs=2",
        "train.batch_size=64",
        "model.projector_dim=128",
        "data.path=me/photos",
        "monitor.k=5",
    ]
    card = card_of("simsiam/imagenet1k_resnet50", changes)
    section = card.text.split("## Comparison with published results")[1].split("\n## ")[0]
    assert "obtained with other settings" in section
    named = re.findall(r"^- `(\S+?)`: `(.+)`, published `(.+)`$", section, re.MULTILINE)
    assert sorted(named) == [
        ("data.path", "me/photos", "ILSVRC/imagenet-1k"),
        ("model.projector_dim", "128", "2048"),
        ("train.batch_size", "64", "512"),
        ("train.epochs", "2.0", "100.0"),
    ]
    assert "monitor.k" in card_of("byol/cifar10_resnet18_lightly", ["monitor.k=5"], {"knn": 0.8}).text.split("## T")[0]


def test_a_run_from_a_recipe_of_ones_own_has_nothing_published_beside_it(tmp_path):
    assert "Comparison with published results" not in card_of("simsiam/cifar10_resnet18").text
    own = tmp_path / "own.yaml"
    own.write_text(shipped_recipes()["simsiam/imagenet1k_resnet50"].read_text())
    assert "Comparison with published results" not in card_of(str(own)).text
    again = tmp_path / "shared.yaml"
    again.write_text(load_recipe("simsiam/imagenet1k_resnet50").shareable().to_yaml())
    assert "Comparison with published results" in card_of(str(again)).text, (
        "a run's own recipe.yaml knows where it began"
    )


@pytest.mark.parametrize("name", [name for name, path in shipped_recipes().items() if published_rows(path)])
def test_a_recipe_differs_from_itself_in_nothing(name):
    recipe = load_recipe(name, ["train.seed=1", "train.output_dir=x", "data.num_workers=2", "monitor.every=2"])
    assert differences(recipe.shareable(), load_recipe(name).shareable(), knn=True) == {}


def test_a_run_without_an_evaluation_says_so():
    card = card_of("simsiam/cifar10_resnet18")
    assert card.data.eval_results is None
    assert "No accuracy was measured" in card.text and "vote" not in card.text


MEASURED = {"queries": "validation", "num_queries": 30, "bank": "train", "num_bank": 90, "num_classes": 3, "notes": []}


@pytest.mark.parametrize(
    ("measured", "split", "text"),
    [
        ({}, "test", "queries from the split `test`, of uoft-cs/cifar10"),
        (
            MEASURED,
            "validation",
            "neighbors from the split `train` (90), queries from the split `validation` (30), of",
        ),
        (
            MEASURED | {"queries": "20 % of train"},
            "20 % of train",
            "queries from 20 % of train (30), of uoft-cs/cifar10",
        ),
        (MEASURED | {"notes": ["All of them vote."]}, "validation", "\n- All of them vote."),
    ],
)
def test_a_card_names_the_part_that_was_measured_on(measured, split, text):
    card = card_of("my_images", [DATA], {"knn": 0.5}, measured=measured)
    assert card.data.eval_results[0].dataset_split == split and text in card.text


def test_an_accuracy_among_one_class_is_no_result_for_the_hub():
    card = card_of("my_images", [DATA], {"knn": 1.0}, measured=MEASURED | {"num_classes": 1, "notes": ["One class."]})
    assert card.data.eval_results is None and "One class." in card.text


def test_metadata_name_what_is_on_the_hub_and_nothing_that_is_not(tmp_path):
    (tmp_path / "photos").mkdir()
    card = card_of("my_images", [f"data.path={tmp_path / 'photos'}", f"train.init_from={tmp_path / 'person/run'}"])
    assert card.data.datasets is None and card.data.base_model is None
    assert str(tmp_path) not in card.content and "person" not in card.content
    assert "Data: photos" in card.text
    gone = ["data.path=/gone/shards/*.tar", "train.init_from=runs/first", "model.init_from=/gone/encoder"]
    card = card_of("my_images", gone)
    assert card.data.datasets is None and card.data.base_model is None and "/gone" not in card.content
    card = card_of("my_images", [DATA, "train.init_from=me/first", "model.init_from=timm/resnet50.a1_in1k"])
    assert card.data.datasets == ["uoft-cs/cifar10"]
    assert card.data.base_model == ["me/first", "timm/resnet50.a1_in1k"]
    assert all(validate_repo_id(name) is None for name in card.data.datasets)


def test_a_large_models_card_cites_all_its_papers():
    recipe = load_recipe("seer/wild_small", ["data.path=me/shards"])
    results = Results({}, {}, None, 5, 7300.0, "8 x GPU", {})
    card = ModelCard(render_card(model_config(recipe, 96), recipe.shareable(), results))
    assert all(key in card.text for key in ("goyal2021seer", "caron2020swav", "a stream of images", "2.0 hours"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("cards") / "run", "simsiam", DATA)[0].model_dir.parent


def test_a_dataset_given_from_python_is_not_called_what_the_recipe_names(run):
    card = ModelCard.load(run / "model/README.md")
    assert card.data.datasets is None and "cifar10" not in card.content
    assert card.data.eval_results[0].dataset_name == "a dataset passed from Python"


def test_a_card_rendered_anew_is_the_same(run):
    before = {file: (run / "model" / file).read_bytes() for file in ("README.md", "results.json")}
    assert refresh_card(run) == refresh_card(run / "model") == run / "model/README.md"
    assert {file: (run / "model" / file).read_bytes() for file in before} == before
    assert not list((run / "model").glob(".partial*"))


def test_what_is_said_about_a_model_stays_and_its_numbers_too(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    folder = tmp_path / "run/model"
    before = ModelCard.load(folder / "README.md")
    words = ["--license", "cc-by-4.0", "--name", "Digits: a model", "--datasets", "ylecun/mnist"]
    main(["card", str(tmp_path / "run"), *words])
    assert capsys.readouterr().out.strip() == str(folder / "README.md")
    refresh_card(folder)
    after = ModelCard.load(folder / "README.md")
    assert (after.data.license, after.data.datasets) == ("cc-by-4.0", ["ylecun/mnist"])
    assert after.data.model_name == "Digits: a model" and "\n# Digits: a model\n" in after.content
    assert after.data.eval_results == before.data.eval_results
    heading = "## Results of this run"
    assert table(after.text, heading) == table(before.text, heading)
    assert "`cc-by-4.0`" in after.text and "hf-ssl card FOLDER" in before.text
    trained(tmp_path / "run", "simsiam", DATA)  # the run has ended, so it only exports again
    assert ModelCard.load(folder / "README.md").content == after.content
    refresh_card(folder, license="", name="", datasets=[""])
    assert ModelCard.load(folder / "README.md").content == before.content


def test_nothing_that_is_shared_has_a_local_path_or_a_token(run, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_person")
    refresh_card(run)
    shared = [path for path in (run / "model").rglob("*") if path.suffix in (".md", ".json", ".yaml", ".py")]
    assert len(shared) > 5
    for path in shared:
        assert str(run.parent) not in path.read_text() and "hf_of_a_person" not in path.read_text(), path


@pytest.mark.parametrize("missing", ["results.json", "recipe.yaml", "pretraining/config.json"])
def test_a_folder_that_is_no_runs_is_one_sentence(run, tmp_path, missing):
    shutil.copytree(run / "model", tmp_path / "model")
    (tmp_path / "model" / missing).unlink()
    with pytest.raises(RecipeError, match="No card can be made from") as error:
        refresh_card(tmp_path / "model", license="mit")
    assert "\n" not in str(error.value) and missing in str(error.value)


def test_results_that_are_cut_off_are_one_sentence(run, tmp_path):
    shutil.copytree(run / "model", tmp_path / "model")
    (tmp_path / "model/results.json").write_text('{"baseline": {')
    with pytest.raises(RecipeError, match="No card can be made from"):
        refresh_card(tmp_path)


@pytest.mark.parametrize(
    ("given", "word"), [({"license": "Apache 2"}, "apache-2.0"), ({"datasets": ["a/b/c"]}, "uoft-cs/cifar10")]
)
def test_a_word_that_the_hub_does_not_take_is_refused(run, given, word):
    before = (run / "model/README.md").read_text()
    with pytest.raises(RecipeError, match=re.escape(word)) as error:
        refresh_card(run, **given)
    assert "\n" not in str(error.value)
    assert (run / "model/README.md").read_text() == before


def test_results_know_what_an_older_version_did_not():
    old = json.loads(Results({}, {}, 1, 1, 1.0, "x", {}).to_json())
    del old["card"], old["measured"]
    assert Results(**old) == replace(Results(**old), card={}, measured={})
