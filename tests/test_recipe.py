# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Recipes: mistakes are named, what ships can be loaded, and published rows have the papers' numbers."""

import math
import re

import pytest
import torch
import yaml

from hf_ssl.data.views import resolve_views
from hf_ssl.models import METHODS as MODELS
from hf_ssl.models import SwavConfig, create_backbone
from hf_ssl.optim import lr_fraction
from hf_ssl.recipe import (
    RecipeError,
    changed_keys,
    copy_shipped,
    load_recipe,
    recipe_from_dict,
    recipe_header,
    recipes_folder,
    shipped_recipes,
)
from hf_ssl.resolve import model_config, resolve
from hf_ssl.training.choices import stand_in
from hf_ssl.training.examples import count_steps


SHIPPED = shipped_recipes()
PUBLISHED = [name for name, path in SHIPPED.items() if "Published" in recipe_header(path)]
IMAGENET = 1281167  # images


def minimal(**sections) -> dict:
    return {"method": "byol", "train": {"epochs": 1}, **sections}


def mistake(content: dict) -> str:
    with pytest.raises(RecipeError) as error:
        recipe_from_dict(content)
    return str(error.value)


def peak_lr(recipe) -> float:
    return recipe.optim.lr * (recipe.train.batch_size / recipe.optim.lr_per if recipe.optim.lr_per else 1)


def lr_at(recipe, epoch: float, images: int = IMAGENET) -> float:
    """Learning rate of the first step of an epoch; -1: of the last step of all."""
    steps_per_epoch = images // recipe.train.batch_size
    num_steps = round(recipe.train.epochs * steps_per_epoch)
    step = num_steps - 1 if epoch == -1 else round(epoch * steps_per_epoch)
    return peak_lr(recipe) * lr_fraction(recipe.optim, step, num_steps, steps_per_epoch)


# ---------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (minimal(trian={"epochs": 1}), ["trian", "train"]),
        (minimal(optim={"shedule": "cosine"}), ["optim.shedule", "schedule"]),
        (minimal(optim={"warmup_epoch": 1}), ["optim.warmup_epoch", "warmup_epochs"]),
        (minimal(views={"all": {"solarizing": 0.1}}), ["views.all.solarizing", "solarize"]),
        (minimal(data={"image_colum": "img"}), ["data.image_colum", "image_column"]),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_one(content, named):
    key, nearest = named
    assert re.search(rf"no key {key}; did you mean .*\b{nearest}\b", mistake(content))


@pytest.mark.parametrize(
    ("content", "key"),
    [
        (minimal(train={"epochs": "many"}), "train.epochs"),
        (minimal(train={"epochs": True}), "train.epochs"),
        (minimal(train={"epochs": 1, "batch_size": 64.5}), "train.batch_size"),
        (minimal(train={"epochs": 1, "batch_size": True}), "train.batch_size"),
        (minimal(train={"epochs": 1, "precision": "fp8"}), "train.precision"),
        (minimal(train=3), "train"),
        (minimal(data={"path": 7.5}), "data.path"),
        (minimal(optim={"exclude_bias_and_norm": "yes please"}), "optim.exclude_bias_and_norm"),
        (minimal(views={"all": {"scale": 0.2}}), "views.all.scale"),
        (minimal(views={"all": {"scale": [0.2]}}), "views.all.scale"),
        (minimal(model=[1]), "model"),
    ],
)
def test_a_wrong_type_names_the_key(content, key):
    assert key in mistake(content)


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ({"train": {"epochs": 1}}, "method"),
        (minimal(train={}), "train.epochs"),
        (minimal(train={"epochs": 1, "steps": 10}), "train.steps"),
        (minimal(train={"epochs": -1}), "train.epochs"),
        (minimal(optim={"lr": -0.1}), "optim.lr"),
        (minimal(optim={"lr_per": 0}), "optim.lr_per"),
        (minimal(monitor={"temperature": 0}), "monitor.temperature"),
        (minimal(train={"epochs": 1, "track": ["tensorbord"]}), "tensorboard"),
    ],
)
def test_an_impossible_value_names_the_key(content, key):
    assert key in mistake(content)


def test_yaml_numbers_that_are_texts_become_numbers():
    recipe = recipe_from_dict(
        yaml.safe_load("{method: byol, train: {epochs: 1}, optim: {lr: 1e-6}, model: {eps: 1e-5}}")
    )
    assert recipe.optim.lr == 1e-6 and recipe.model["eps"] == 1e-5


def test_a_bare_no_is_the_precision_no():
    assert (
        recipe_from_dict(yaml.safe_load("{method: byol, train: {epochs: 1, precision: no}}")).train.precision == "no"
    )


@pytest.mark.parametrize(
    ("batch", "world", "accumulation", "near"),
    [(100, 8, 1, "96 or 104"), (100, 4, 2, "96 or 104"), (3, 8, 1, " 8."), (4097, 4, 4, "4096 or 4112")],
)
def test_a_batch_that_does_not_divide_gets_the_nearest_that_do(batch, world, accumulation, near):
    recipe = recipe_from_dict(minimal(train={"epochs": 1, "batch_size": batch, "accumulation": accumulation}))
    with pytest.raises(RecipeError, match="train.batch_size") as error:
        recipe.per_process_batch(world)
    assert near in str(error.value)


def test_a_batch_is_divided_over_processes_and_accumulation():
    recipe = recipe_from_dict(minimal(train={"epochs": 1, "batch_size": 96, "accumulation": 3}))
    assert recipe.per_process_batch(8) == 4


@pytest.mark.parametrize("name", ["byol/imagenet1k_resnet5", "byol/imagnet1k_resnet50.yaml"])
def test_a_recipe_that_is_not_there_gets_the_nearest_names(name):
    with pytest.raises(RecipeError, match="the nearest are .*byol/imagenet1k_resnet50"):
        load_recipe(name)


def test_minutes_that_would_not_count_are_refused():
    more = ["data.path=x", "train.minutes=1"]
    with pytest.raises(RecipeError, match="train.minutes counts only with train.epochs=auto, not with 5"):
        load_recipe("my_images", [*more, "train.epochs=5"])
    assert load_recipe("my_images", more).train.minutes == 1


def test_a_changed_copy_and_the_shipped_recipe_are_not_mixed_up(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    copy = copy_shipped("my_images", ".")
    assert load_recipe("my_images", ["data.path=x"]).optim.name == "adamw"  # unchanged: either is meant
    copy.write_text(copy.read_text().replace("name: adamw", "name: lars"))
    with pytest.raises(RecipeError, match="say my_images.yaml or recipes/my_images"):
        load_recipe("my_images", ["data.path=x"])
    assert load_recipe("my_images.yaml", ["data.path=x"]).optim.name == "lars"
    assert load_recipe("recipes/my_images", ["data.path=x"]).optim.name == "adamw"


# ---------------------------------------------------------------------------------------------- overrides


def test_overrides_reach_every_depth():
    overrides = [
        "train.epochs=3",
        "optim.lr=1e-3",
        "optim.lr_per=null",
        "views.local.count=0",
        "views.all.scale=[0.08,1.0]",
        "model.backbone_args.channels=[128,256,512,1024]",
        "train.precision=no",
    ]
    recipe = load_recipe("swav/imagenet1k_resnet50", overrides)
    assert (recipe.train.epochs, recipe.optim.lr, recipe.optim.lr_per) == (3.0, 1e-3, None)
    assert [view.scale for view in resolve_views(recipe.views, "swav")] == [(0.08, 1.0)] * 2
    assert recipe.model["backbone_args"] == {"channels": [128, 256, 512, 1024]}
    assert recipe.train.precision == "no"


@pytest.mark.parametrize("override", ["train.epochs", "=3", "method.name=byol", "train.epochs=[1"])
def test_what_is_no_override_is_said(override):
    with pytest.raises(RecipeError):
        load_recipe("byol/cifar10_resnet18", [override])


# ---------------------------------------------------------------------------------------------- what ships


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_loads_by_its_name_and_gives_a_model_and_views(name):
    recipe = stand_in(load_recipe(name))
    views = resolve_views(recipe.views, recipe.method)
    config = model_config(recipe, views[0].size)
    assert config.image_size == recipe.model.get("image_size", views[0].size)
    folder = name.split("/")[0].replace("seer", "swav")
    assert config.model_type == recipe.method == folder or "/" not in name
    assert recipe_from_dict(yaml.safe_load(recipe.to_yaml())).to_dict() == recipe.to_dict(), "read back the same"
    if name.startswith("seer/"):
        assert recipe.data.streaming and recipe.data.path is None, "their images are nobody's to name"
    elif not name.rpartition("/")[2].startswith("my_"):  # templates
        assert recipe.data.path


@pytest.mark.parametrize("name", SHIPPED)
def test_a_header_says_what_the_recipe_is(name):
    text = SHIPPED[name].read_text()
    header = recipe_header(SHIPPED[name])
    assert set(header) <= {"Title", "Dataset", "Published", "Source", "Hardware", "Note"}
    assert header["Dataset"] and len(header["Title"]) < 120
    if name in PUBLISHED:
        assert header["Source"] and header["Hardware"]
        assert re.search(r"\d\d\.\d", header["Published"]) and "ep)" in header["Published"]
    else:
        assert not text.startswith("# Published")


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_number_is_claimed_with_published_views_and_is_of_the_recipe_as_it_stands(name):
    recipe = load_recipe(name)
    assert recipe.views.photometric == "reference" and recipe.train.precision not in ("bf16", "auto")
    first_row = recipe_header(SHIPPED[name])["Published"].split(";")[0]
    assert first_row.endswith(f"({recipe.train.epochs or 1:g} ep)")


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_overrides_of_every_further_published_row_can_be_given(name):
    for row in recipe_header(SHIPPED[name])["Published"].split(";")[1:]:
        epochs, overrides = re.search(r"\((\d+) ep[^:]*: (.+)\)$", row.strip()).groups()
        recipe = load_recipe(name, overrides.split())
        resolve(recipe)
        assert recipe.train.epochs == int(epochs), row


@pytest.mark.parametrize("name", [name for name in SHIPPED if name.startswith("seer/regnety_")])
def test_seer_sees_a_billion_images_once_at_the_published_rate(name):
    recipe = load_recipe(name)
    config = model_config(recipe, 224)
    seer = SwavConfig.seer("regnety_10b" if name.endswith("10b") else config.backbone, image_size=224)
    small = name[13:] in ("080", "160", "320")
    assert tuple(seer.projector_dims) == ((4096, 4096, 256) if small else (8192, 8192, 256))
    assert seer.projector_batch_norm == small
    assert config.to_diff_dict() == seer.to_diff_dict()
    assert count_steps(recipe.train, recipe.data.num_examples) == (recipe.train.steps, recipe.train.steps)
    assert recipe.data.num_examples == 10**9
    peak = recipe.optim.lr * recipe.train.batch_size / recipe.optim.lr_per
    steps = recipe.train.steps
    rates = [peak * lr_fraction(recipe.optim, s, steps, steps) for s in (0, recipe.optim.warmup_steps, steps - 1)]
    start, end = {"2560": (0.15, 0.0096), "10b": (0.3, 0.0093), "1280": (0.3, 4.8)}.get(name[13:], (0.3, 0.0048))
    highest = 0.3 * recipe.train.batch_size / 256
    if name[13:] != "1280":  # VISSL's cosine is over the run: where the warm-up ends it has gone down a little
        highest *= 0.001 + 0.999 * (1 + math.cos(math.pi * recipe.optim.warmup_steps / steps)) / 2
    assert rates == pytest.approx([start, highest, end], rel=1e-3)
    assert recipe.data.partitions % {"2560": 512, "10b": 496}.get(name[13:], 128) == 0


def test_deepminds_small_recipe_has_the_projection_of_its_network():
    recipe = load_recipe("byol/imagenette_resnet18_deepmind")
    backbone = create_backbone(model_config(recipe, 128))
    shortcut = backbone.layer1[0].downsample
    assert shortcut[0].weight.shape == (64, 64, 1, 1) and isinstance(shortcut[1], torch.nn.BatchNorm2d)
    assert backbone(torch.zeros(1, 3, 64, 64)).shape == (1, 512)


def test_lightlys_recipes_of_byol_have_torchvisions_colors_and_the_authors_have_their_own():
    for name in SHIPPED:
        recipe = load_recipe(name)
        if recipe.method == "byol":
            lightly = name in ("byol/cifar10_resnet18_lightly", "byol/imagenette_resnet18")
            colors = {view.colors for view in resolve_views(recipe.views, "byol")}
            assert colors == {"torchvision" if lightly else "deepmind"}, name


def test_vissls_recipes_have_its_cosine_over_the_run_and_the_others_not():
    over = {name for name in SHIPPED if load_recipe(name).optim.cosine_over == "run"}
    seer = {f"seer/regnety_{size}" for size in ("080", "160", "320", "640", "2560", "10b")}
    assert over == seer | {"swav/imagenet1k_regnety_160", "swav/imagenet1k_regnety_1280"}


def test_seers_headers_say_which_weight_decay_is_known():
    for name, path in SHIPPED.items():
        if name.startswith("seer/regnety_"):
            known = name[13:] in ("2560", "10b")
            assert load_recipe(name).optim.weight_decay == (1e-5 if known else 1e-6)
            assert ("Weight decay is stated only for RegNetY-256GF and RG-10B" in path.read_text()) != known
    assert "iNaturalist-18 fine-tuned 80.0" in SHIPPED["seer/regnety_640"].read_text()


def test_a_warmup_is_in_epochs_or_in_steps():
    in_epochs, in_steps = (
        recipe_from_dict({"method": "swav", "train": {"epochs": 4}, "optim": optim}).optim
        for optim in ({"warmup_epochs": 2}, {"warmup_steps": 10})
    )
    for step in range(20):
        assert lr_fraction(in_epochs, step, 20, 5) == lr_fraction(in_steps, step, 20, 5)
    with pytest.raises(RecipeError, match=r"optim.warmup_epochs and optim.warmup_steps"):
        recipe_from_dict({"method": "swav", "train": {"epochs": 4}, "optim": {"warmup_epochs": 2, "warmup_steps": 9}})


def test_overrides_in_notes_can_be_given():
    for name, path in SHIPPED.items():
        comments = " ".join(line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#"))
        for override in re.findall(r"(?:model|optim|train|views|monitor)\.[a-z_.]+=[\w.\[\],-]*[\w\]]", comments):
            resolve(stand_in(load_recipe(name, [override])))


def test_accelerate_configurations_are_not_recipes_and_say_how_many_processes():
    assert not any(name.startswith("accelerate") for name in SHIPPED)
    configs = {p.stem: yaml.safe_load(p.read_text()) for p in (recipes_folder() / "accelerate").glob("*.yaml")}
    assert configs["cpu"]["use_cpu"] is True and configs["cpu"]["mixed_precision"] == "no"
    assert configs["gpu"]["num_processes"] == 1 and configs["gpu"]["mixed_precision"] == "bf16"
    assert configs["ddp"]["distributed_type"] == "MULTI_GPU" and configs["ddp"]["num_processes"] == 8


# ---------------------------------------------------------------------------------------------- published rows


def test_barlow_twins_has_the_papers_learning_rates():
    recipe = load_recipe("barlow_twins/imagenet1k_resnet50")
    assert peak_lr(recipe) == pytest.approx(1.6)  # 0.2 x 2048 / 256
    assert recipe.optim.lr_bias_and_norm == pytest.approx(0.024 * recipe.optim.lr)
    assert lr_at(recipe, 0) == 0 and lr_at(recipe, 5) == pytest.approx(0.8) and lr_at(recipe, 10) == pytest.approx(1.6)
    assert lr_at(recipe, -1) == pytest.approx(0.0016, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "overrides", "peak", "decay", "tau"),
    [
        ("byol/imagenet1k_resnet50", [], 3.2, 1.5e-6, 0.996),
        ("byol/imagenet1k_resnet200", [], 3.2, 1.5e-6, 0.996),
        ("byol/imagenet1k_resnet50_batch512", [], 0.8, 1.5e-6, 0.9995),
        (
            "byol/imagenet1k_resnet50",
            ["train.epochs=300", "optim.lr=0.3", "optim.weight_decay=1e-6", "model.tau_base=0.99"],
            4.8,
            1e-6,
            0.99,
        ),
    ],
)
def test_byol_has_the_papers_learning_rates(name, overrides, peak, decay, tau):
    recipe = load_recipe(name, overrides)
    assert lr_at(recipe, 0) == 0 and lr_at(recipe, 10) == pytest.approx(peak)
    assert lr_at(recipe, -1) == pytest.approx(0, abs=1e-6)
    assert recipe.optim.exclude_bias_and_norm and recipe.optim.weight_decay == decay
    assert recipe.model["tau_base"] == tau


def test_simsiam_falls_by_epochs_from_its_first_step():
    recipe = load_recipe("simsiam/imagenet1k_resnet50")
    assert lr_at(recipe, 0) == pytest.approx(0.1)  # 0.05 x 512 / 256
    assert lr_at(recipe, 50) == pytest.approx(0.05) and lr_at(recipe, 50.9) == pytest.approx(0.05)
    assert lr_at(recipe, -1) == pytest.approx(0.05 * (1 + math.cos(math.pi * 0.99)))
    assert recipe.optim.fixed_predictor_lr and not recipe.optim.exclude_bias_and_norm


@pytest.mark.parametrize(
    ("name", "batch", "start", "peak", "end"),
    [
        ("swav/imagenet1k_resnet50", 4096, 0.3, 4.8, 0.0048),
        ("swav/imagenet1k_resnet50w2", 4096, 0.3, 4.8, 0.0048),
        ("swav/imagenet1k_resnet50w4", 2560, 0.3, 4.8, 0.0048),
        ("swav/imagenet1k_resnet50w5", 1536, 0.1875, 4.8, 0.0),
        ("swav/imagenet1k_regnety_160", 4096, 0.3, 4.8, 0.0048),
        ("swav/imagenet1k_resnet50_batch256", 256, 0.6, 0.6, 0.0006),
    ],
)
def test_swav_has_the_papers_learning_rates(name, batch, start, peak, end):
    recipe = load_recipe(name)
    assert recipe.train.batch_size == batch
    assert lr_at(recipe, 0) == pytest.approx(start)
    if recipe.optim.warmup_epochs:
        steps_per_epoch = IMAGENET // batch
        assert lr_at(recipe, 10 - 1 / steps_per_epoch) == pytest.approx(peak)  # the last step of the warm-up
    assert lr_at(recipe, -1) == pytest.approx(end, rel=1e-2, abs=1e-6)


@pytest.mark.parametrize("name", [name for name in SHIPPED if name.startswith("swav/")])
def test_a_swav_queue_holds_whole_batches_and_the_published_crops_are_there(name):
    recipe = load_recipe(name)
    assert recipe.model.get("queue_length", 0) % recipe.train.batch_size == 0
    locals_ = [view for view in resolve_views(recipe.views, "swav") if view.local]
    if "imagenet1k" in name:
        assert len(locals_) == (4 if re.search(r"w\d$", name) else 6) and {v.size for v in locals_} == {96}


def test_lightlys_byol_takes_the_steps_of_its_smaller_loss():
    for name, per in (("byol/cifar10_resnet18_lightly", 128), ("byol/imagenette_resnet18", 256)):
        optim = load_recipe(name).optim
        assert optim.lr_per == per
        assert 4 * optim.lr == pytest.approx(0.06)  # the loss is 4 times theirs
        assert optim.lr * optim.weight_decay == pytest.approx(0.06 * 5e-4)


@pytest.mark.parametrize(
    ("name", "start"),  # of the loss: the method's value for unrelated embeddings
    [
        ("byol/imagenette_resnet18_deepmind", 4),
        ("simsiam/cifar10_resnet18", 0),
        ("swav/cifar10_resnet18", math.log(128)),
    ],
)
def test_a_recipes_model_can_be_made_and_its_loss_starts_where_the_header_of_my_images_says(name, start):
    torch.manual_seed(0)
    recipe = load_recipe(name)
    config = model_config(recipe, 32)
    model = MODELS[recipe.method][1](config)
    loss = model(pixel_values=torch.randn(8, 2, 3, 32, 32)).loss.item()
    assert loss == pytest.approx(start, abs=1)


# ---------------------------------------------------------------------------------------------- comparing and sharing


def test_changed_keys_are_those_that_decide_the_weights():
    old = load_recipe("byol/cifar10_resnet18").to_dict()
    free = load_recipe(
        "byol/cifar10_resnet18",
        [
            "data.num_workers=1",
            "monitor.k=5",
            "train.keep_checkpoints=5",
            "train.output_dir=/elsewhere",
            "train.log_every=1",
        ],
    )
    assert changed_keys(old, free.to_dict()) == []
    new = load_recipe("byol/cifar10_resnet18", ["optim.lr=3", "model.tau_base=0.9", "views.local.size=16"])
    assert changed_keys(old, new.to_dict()) == ["model.tau_base", "optim.lr", "views.local.size"]
    older = {key: value for key, value in old.items() if key != "clips"}
    assert changed_keys(older, free.to_dict()) == [], "keys that came later had their defaults"
    assert changed_keys(older, {**old, "clips": {"offset": 1.0, "volume": 0.1}}) == ["clips.offset"]


def test_a_shared_recipe_hides_local_folders(tmp_path):
    folder = tmp_path / "secret_person" / "photos"
    folder.mkdir(parents=True)
    recipe = load_recipe(
        "my_images", [f"data.path={folder}", f"monitor.path={folder}", f"train.output_dir={tmp_path / 'run'}"]
    )
    shared = recipe.shareable()
    assert "secret_person" not in shared.to_yaml() and str(tmp_path) not in shared.to_yaml()
    assert shared.data.path == shared.monitor.path == "photos"
    assert recipe.data.path == str(folder), "the run's own recipe stays as it is"
    assert load_recipe("byol/cifar10_resnet18").shareable().data.path == "uoft-cs/cifar10"
