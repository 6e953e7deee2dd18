# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""What no run can have is refused with the recipe: impossible numbers, and files that are no recipes."""

import random

import pytest
import yaml

from hf_ssl.recipe import RecipeError, load_recipe, recipe_from_dict, shipped_recipes
from hf_ssl.resolve import resolve
from hf_ssl.training.choices import stand_in


def recipe(method: str, *overrides: str):
    content: dict = {"method": method}
    content["train"] = {} if any(o.startswith(("train.steps", "train.epochs")) for o in overrides) else {"epochs": 1}
    for override in overrides:
        key, _, text = override.partition("=")
        *sections, last = key.split(".")
        place = content
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = yaml.safe_load(text)
    built = recipe_from_dict(content)
    return built, resolve(built).config


IMPOSSIBLE = """
optim.lr=.nan optim.lr=.inf optim.lr=nan optim.lr=-1 optim.momentum=5 optim.momentum=1 optim.momentum=-0.1
optim.clip_grad_norm=-1 optim.clip_grad_norm=0 optim.betas=[1,1] optim.betas=[0.9,.nan] optim.trust_coefficient=.nan
optim.trust_coefficient=0 optim.weight_decay=-1e-4 optim.weight_decay=.inf optim.warmup_steps=-1 optim.warmup_epochs=-1
optim.warmup_lr_fraction=2 optim.final_lr_fraction=-0.1 optim.lr_per=0 optim.lr_bias_and_norm=-1
train.seed=-1 train.seed=100000000000 train.seed=1e30 train.epochs=.inf train.epochs=0 train.epochs=1e20
train.steps=100000000000000000000 train.batch_size=1 train.batch_size=0 train.accumulation=0 train.accumulation=-3
train.checkpoint_every=0 train.checkpoint_every=.nan train.keep=0 train.log_every=0
data.max_failed_share=1e6 data.max_failed_share=-0.1 data.max_failed_share=.nan data.num_workers=-1
data.num_workers=100000 data.partitions=0 data.partitions=1000000000 data.shuffle_block=0 data.max_megapixels=0
data.max_examples=0 data.num_examples=-5 monitor.k=0 monitor.k=1000000000 monitor.temperature=0 monitor.every=-1
monitor.num_samples=0 monitor.batch_size=0 monitor.max_bank=0 monitor.max_queries=-1 clips.offset=-1 clips.volume=2
views.all.size=0 views.all.size=1000000 views.first.count=-1 views.local.count=100000 views.all.flip=2
views.second.blur_sigma=[1,1e9] views.all.scale=[0,1] views.all.scale=[.nan,1] views.all.jitter=[1,1,1,.inf]
views.all.solarize_threshold=1.5 model.temperature=0 model.temperature=.nan model.epsilon=0 model.num_prototypes=1
model.num_prototypes=1000000000000 model.projector_dims=[1000000000] model.projector_dims=[-1] model.queue_length=-1
model.queue_length=3 model.crops_for_assign=[7] model.image_size=0 model.image_size=1000000 model.image_std=[0,1,1]
model.image_mean=[.nan,0,0] model.sinkhorn_iterations=0 model.crop_pct=.nan model.init_from=7
model.backbone_args={depth: 1000000000}
model.backbone_args={checkpoint_path: x.pth}
""".replace("{depth: ", "{depth:~").replace("{checkpoint_path: ", "{checkpoint_path:~")


@pytest.mark.parametrize("override", [text.replace("~", " ") for text in IMPOSSIBLE.split()])
def test_an_impossible_number_is_refused_with_its_key(override):
    with pytest.raises(RecipeError) as error:
        recipe("swav", override)
    assert override.partition("=")[0].split(".")[-1] in str(error.value)
    assert len(str(error.value)) < 400 and "\n" not in str(error.value)


@pytest.mark.parametrize("method", ["barlow_twins", "byol", "simsiam"])
@pytest.mark.parametrize("override", ["views.first.count=2", "views.local.count=2", "views.all.count=3"])
def test_a_number_of_views_that_a_method_cannot_take_is_refused(method, override):
    with pytest.raises(RecipeError, match="compares two global views"):
        recipe(method, override)


def test_the_ends_of_what_is_possible_are_possible():
    at_the_ends = [
        "optim.lr=0",
        "optim.momentum=0",
        "optim.betas=[0,0]",
        "train.seed=4294967295",
        "train.batch_size=2",
    ]
    at_the_ends += ["data.max_failed_share=1", "train.seed=4294967295", "optim.final_lr_fraction=1", "monitor.every=0"]
    built, _ = recipe("simsiam", *at_the_ends)
    assert built.train.seed == 4294967295 and built.per_process_batch(1) == 2
    assert recipe("avid", "train.batch_size=1")[0].per_process_batch(1) == 1


def test_one_image_a_process_needs_statistics_of_all_processes():
    assert resolve(recipe("simsiam", "train.batch_size=2")[0]).per_process_batch(2) == 1
    with pytest.raises(RecipeError, match="sync_batchnorm=true"):
        resolve(recipe("simsiam", "train.batch_size=2", "train.sync_batchnorm=false")[0]).per_process_batch(2)


# ------------------------------------------------------------------------------------------ files and overrides

LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
MERGES = "b0: &b0 {k: 1}\n" + "".join(f"b{i}: &b{i} {{<<: [{', '.join([f'*b{i - 1}'] * 9)}]}}\n" for i in range(1, 12))


@pytest.mark.parametrize(
    "content",
    [
        b"a: &a [*a]",
        b"method: byol\nmodel: &m {x: *m}",
        LAUGHS.encode(),
        MERGES.encode(),
        b"[" * 20_000,
        b"{a: " * 3000,
        b"- " * 5000,
        b"method: \xff\xfe",
        b"\xff\xfem\0e\0",
        b"method: byol\0",
        b'method: byol\nname: "a\\0b"\ntrain: {epochs: 1}',
        b"a: 1\n" * 100_000,
        b"method: byol\ntrain: {epochs: " + b"9" * 5000 + b"}",
        b"!!python/object/apply:os.mkdir [executed]",
        b"2024-13-45: 2024-13-45",
        b"? [a, b]\n: c",
        b"- 1",
        b"text",
        b"",
    ],
)
def test_a_file_that_is_no_recipe_is_one_short_sentence(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_bytes(content)
    with pytest.raises(RecipeError) as error:
        load_recipe("recipe.yaml")
    assert len(str(error.value)) < 500 and "\n" not in str(error.value)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("value", ["&a [*a]", "[" * 5000, "!!python/name:os.mkdir", "{", "2024-13-45", "'"])
def test_an_override_that_is_no_value_is_named(value):
    with pytest.raises(RecipeError, match=r"model\.backbone_args"):
        load_recipe("quickstart", [f"model.backbone_args={value}"])


def test_a_large_file_and_a_device_are_no_recipes(tmp_path):
    with (tmp_path / "zeros.yaml").open("wb") as file:
        file.truncate(2**30)
    for name in (tmp_path / "zeros.yaml", tmp_path, "/dev/zero", "x" * 5000, "a\0b"):
        with pytest.raises(RecipeError):
            load_recipe(name)


def test_what_an_alias_stands_for_is_changed_alone(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("{method: byol, train: {epochs: 1}, views: {first: &v {blur: 0.5}, second: *v}}")
    views = load_recipe(path, ["views.first.blur=0.25"]).views
    assert (views.first.blur, views.second.blur) == (0.25, 0.5)


# ------------------------------------------------------------------------------------------------------- fuzz

ODD = [None, True, -1, 0, 1e400, float("nan"), 10**30, "", "\0", "no", [], {}, [[]], {"a": {}}, "1e-6", b"x", 0.5]


def changed(content, generator: random.Random):
    """The same with one value, key or section replaced by something odd."""
    if isinstance(content, dict) and content and generator.random() < 0.85:
        key = generator.choice(list(content))
        if generator.random() < 0.1:
            return {generator.choice([key[::-1], 1, None, True]) if k == key else k: v for k, v in content.items()}
        return content | {key: changed(content[key], generator)}
    return generator.choice(ODD)


def fuzz(folder, count: int, seed: int) -> None:
    generator = random.Random(seed)
    shipped = list(shipped_recipes().values())
    for _ in range(count):
        file = generator.choice(shipped)
        text, whole = file.read_text(), load_recipe(file)
        overrides = []
        if generator.random() < 0.4:
            text = yaml.safe_dump(changed(whole.to_dict(), generator))
        elif generator.random() < 0.5:
            lines = whole.flat_text()
            overrides = [f"{generator.choice(list(lines))}={generator.choice(ODD)}" for _ in range(3)]
        data = bytearray(text.encode())
        for _ in range(generator.choice((0, 0, 1, 5))):
            data[generator.randrange(len(data))] = generator.randrange(256)
        (folder / "recipe.yaml").write_bytes(data)
        try:
            built = load_recipe(folder / "recipe.yaml", overrides)
            resolve(stand_in(built))
            assert recipe_from_dict(yaml.safe_load(built.to_yaml())).to_dict() == built.to_dict()
            built.shareable().flat_text()
        except RecipeError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000
    assert not (folder / "executed").exists()


def test_damaged_recipes_end_in_a_recipe_or_one_sentence(tmp_path):
    fuzz(tmp_path, 200, seed=0)


@pytest.mark.slow
def test_two_thousand_damaged_recipes_end_in_a_recipe_or_one_sentence(tmp_path):
    fuzz(tmp_path, 2000, seed=1)
