# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Generate the cards of the published configurations: numbers from the recipes, text from families.yaml.

Usage: python model_cards/make_cards.py    (a test fails if the cards are out of date)
"""

import re
import textwrap
from pathlib import Path
from string import Template
from typing import Any

import yaml
from huggingface_hub import ModelCardData

from hf_ssl.data.views import resolve_views
from hf_ssl.hub.card import bibtex
from hf_ssl.hub.published import published_rows
from hf_ssl.models import SSLConfig, rebuildable_by_timm
from hf_ssl.recipe import Recipe, load_recipe, recipe_header, shipped_recipes
from hf_ssl.resolve import resolve


FOLDER = Path(__file__).parent

OPTIMIZERS = {"lars": "LARS", "larc": "SGD with LARC", "sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}

CONVERT = """\
hf_ssl does not ship these weights. Download the file yourself, then convert it:

```bash
hf-ssl convert FILE --method {method} --output {output}
```

Load the result like the model of a run: `AutoModel.from_pretrained("{output}"{trust})`."""

REPRODUCE = (
    "The model is saved in `runs/{stem}/model`. The last command evaluates it on labeled data. It does not follow the "
    "authors' protocol exactly, so report its figure next to theirs, not in place of it."
)

LIMITS = (
    "For research on self-supervised features: similarity search, classifiers on frozen features, fine-tuning. It has "
    "no classifier, and is not meant to identify people or to make decisions about them. {data} The published figures "
    "hold for the protocols of their source."
)

LICENSE = (
    "The original code ({code}) is under {code_license}. {weights} The recipe is part of hf_ssl, under Apache-2.0. "
    "You choose the license of weights that you train yourself; check the license of the training data."
)

CORPORA = {
    "ImageNet-1k": "ImageNet-1k consists of hand-sorted photographs from the internet, most of a single object: "
    "features inherit its selection and biases, so test them first on other kinds of images.",
    "Kinetics-400": "Kinetics-400 consists of short videos of human actions from the internet: features inherit its "
    "selection and biases, and expect video with matching sound.",
    "AudioSet": "AudioSet consists of short videos from the internet, selected by their sound: features inherit its "
    "selection and biases, and expect video with matching sound.",
    "1 billion uncurated images": "The images were public and uncurated: features inherit their biases. The "
    "original weights are for non-commercial use.",
}


def published_configurations() -> list[str]:
    """Recipes with published figures on a large dataset; benchmarks on small datasets have no card."""
    found = {name: path for name, path in shipped_recipes().items() if published_rows(path)}
    return [name for name in found if name.startswith(("avid/", "seer/")) or "/imagenet1k_" in name]


def render(name: str) -> str:
    """The card of a recipe."""
    path = shipped_recipes()[name]
    recipe, header = load_recipe(path), recipe_header(path)
    config = resolve(recipe).config
    family_name, stem = name.split("/")
    family = yaml.safe_load((FOLDER / "families.yaml").read_text())[family_name]
    family |= family.get("of", {}).get(name, {})
    trust = not rebuildable_by_timm(config)
    convert = {"method": family["convert"], "output": stem, "trust": ", trust_remote_code=True" if trust else ""}
    notes = [note for note in _notes(path) if not note.startswith("Other results:")]
    text = Template((FOLDER / "published.md").read_text()).substitute(
        metadata=_metadata(recipe, family_name, family, trust).to_yaml(),
        name=name,
        title=header["Title"],
        about=_fill(family["about"]),
        results=_results(path),
        source=header["Source"],
        settings=_settings(recipe, config, family, header),
        command=_commands(name, recipe),
        reproduce=_fill(f"{REPRODUCE.format(stem=stem)} {family.get('reproduce', '').format(name=name)}"),
        weights=_fill(family["weights"].format(backbone=recipe.model.get("backbone"))),
        convert=CONVERT.format(**convert) if family["convert"] else "",
        notes="\n".join(_fill(note, "- ") for note in notes),
        limits=_fill(LIMITS.format(data=CORPORA[header["Dataset"].split(" (")[0].split(",")[0]])),
        license=_fill(LICENSE.format(**family | {"weights": _weights_license(family)})),
        citation=bibtex(family_name),
    )
    return re.sub(r"\n{3,}", "\n\n", text)  # left by empty sections


def _fill(text: str, bullet: str = "") -> str:
    indent = " " * len(bullet)
    how = {"width": 119, "break_long_words": False, "break_on_hyphens": False}
    return textwrap.fill(" ".join(text.split()), initial_indent=bullet, subsequent_indent=indent, **how)


def _weights_license(family: dict[str, Any]) -> str:
    if family.get("weights_license"):
        return f"The original weights are under {family['weights_license']}."
    if "None were released" in family["weights"]:
        return ""
    return "See their source for the license of the original weights."


def _metadata(recipe: Recipe, family_name: str, family: dict[str, Any], trust: bool) -> ModelCardData:
    clips = recipe.method == "avid"
    return ModelCardData(
        license=family.get("license"),
        license_name=family.get("license_name"),
        license_link=family.get("license_link"),
        library_name="transformers" if trust else "timm",
        pipeline_tag="feature-extraction" if clips else "image-feature-extraction",
        tags=["timm", "transformers", "self-supervised-learning", recipe.method, "hf_ssl"]
        + [family_name] * (family_name != recipe.method),
        datasets=[recipe.data.path] if "/" in (recipe.data.path or "") else None,
    )


def _results(path: Path) -> str:
    rows = []
    for row in published_rows(path):
        changes = " ".join(f"`{override}`" for override in row.overrides) or "none"
        settings = re.sub(r"\bep\b", "epoch" if row.settings == "1 ep" else "epochs", row.settings)
        rows += [(measure, figure, settings, changes) for measure, figure in row.figures.items()]
        for note in _notes(path) if not row.overrides else ():
            if note.startswith("Other results: "):
                others = note.removeprefix("Other results: ").rstrip(".").split("; ")
                rows += [(*other.rsplit(" ", 1), settings, changes) for other in others]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _settings(recipe: Recipe, config, family: dict[str, Any], header: dict[str, str]) -> str:
    train, optim, clips = recipe.train, recipe.optim, not isinstance(config, SSLConfig)
    momentum = f"betas {_value(optim.betas)}" if optim.name.startswith("adam") else f"momentum {optim.momentum:g}"
    rows = {
        "Encoder": f"`{config.video_backbone}` and `{config.audio_backbone}`"
        if clips
        else f"timm's `{config.backbone}`",
        "Data": f"{header['Dataset']}, without labels",
        "Views": _views(recipe, config),
        "Length": f"{train.epochs:g} epochs" if train.epochs else f"{train.steps:,} steps",
        "Batch": f"{train.batch_size:,} {'clips' if clips else 'images'} over all processes",
        "Optimizer": f"{OPTIMIZERS[optim.name]}, {momentum}, weight decay {optim.weight_decay:g}"
        + (", no weight decay or adaptation for biases and BatchNorm" if optim.exclude_bias_and_norm else ""),
        "Learning rate": _learning_rate(recipe),
        "Hardware of the authors": header["Hardware"],
    }
    if not clips and config.backbone_args:
        rows["Encoder"] += ", " + ", ".join(f"`{key}={value}`" for key, value in config.backbone_args.items())
    if train.init_from:
        rows["Starts from"] = f"`{train.init_from}`, including its memories"
    rows |= {f"`model.{key}`": _value(getattr(config, key)) for key in family["fields"]}
    return "\n".join(f"| {key} | {value} |" for key, value in rows.items())


def _value(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value).lower()


def _views(recipe: Recipe, config) -> str:
    sizes = [view.size for view in resolve_views(recipe.views, recipe.method)]
    if recipe.method == "avid":
        frames = f"{config.num_frames} frames of {sizes[0]} pixels, {config.frame_rate} per second"
        return f"{frames}, and {config.audio_seconds} s of sound"
    return " and ".join(f"{sizes.count(size)} of {size} pixels" for size in dict.fromkeys(sizes))


def _learning_rate(recipe: Recipe) -> str:
    optim, train = recipe.optim, recipe.train
    peak = optim.lr * train.batch_size / optim.lr_per if optim.lr_per else optim.lr
    said = f"{peak:.6g}"
    if optim.lr_per:
        said += f" ({optim.lr:g} per {optim.lr_per} images)"
    if optim.lr_bias_and_norm is not None:
        said += f", for biases and BatchNorm {optim.lr_bias_and_norm * train.batch_size / optim.lr_per:.6g}"
    if optim.warmup_epochs or optim.warmup_steps:
        length = f"{optim.warmup_steps:,} steps" if optim.warmup_steps else f"{optim.warmup_epochs:g} epochs"
        said += f"; warm-up of {length} from {peak * optim.warmup_lr_fraction:.3g}"
    said += "; constant" if optim.schedule == "constant" else f"; cosine to {peak * optim.final_lr_fraction:.3g}"
    return said + ("; constant for the predictor" if optim.fixed_predictor_lr else "")


def _commands(name: str, recipe: Recipe) -> str:
    avid, stem = recipe.method == "avid", name.split("/")[1]
    config = "fsdp2" if name.startswith("seer/") else "ddp"
    data = " data.path=path/to/videos" if avid else " data.path=path/to/shards" if config == "fsdp2" else ""
    run = f"accelerate launch --config_file recipes/accelerate/{config}.yaml -m hf_ssl pretrain \\\n    {name}{data}"
    first = [run.replace("_cma ", "_avid ") + "  # skip if already done"] if recipe.train.init_from else []
    labeled = "path/to/labeled/videos" if avid else "ILSVRC/imagenet-1k --query-split validation"
    return "\n".join([*first, run, f"hf-ssl evaluate linear runs/{stem} --data {labeled}"])


def _notes(path: Path) -> list[str]:
    """The `# Note:` lines of a recipe's header, each joined with its continuation lines."""
    notes, inside = [], False
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        if line.startswith("# Note: "):
            notes.append(line.removeprefix("# Note: "))
        elif line.startswith("#   ") and inside:
            notes[-1] += " " + line.lstrip("# ")
        inside = line.startswith("# Note: ") or (inside and line.startswith("#   "))
    return notes


def main() -> None:
    for name in published_configurations():
        path = FOLDER / f"{name}.md"
        path.parent.mkdir(exist_ok=True)
        path.write_text(render(name))


if __name__ == "__main__":
    main()
