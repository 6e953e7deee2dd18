# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Evaluation of frozen encoders by the protocols of `hf_ssl.evaluation.protocols`.

Features are embedded once (`hf_ssl.evaluation.store`), whatever is measured on them. Nothing is chosen on the examples
that are judged: where something has to be, a part of the training examples is held out for it.
"""

import logging
import sys
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..data.bank import labelled_source, labelled_sources, measured_on, place_in_class, unlabelled_queries
from ..data.places import open_place
from ..data.sources import Source
from ..devices import best_precision, process_state
from ..disk import atomic_write
from ..errors import UserError
from ..hub.card import hardware, versions
from ..recipe import DataConfig, MonitorConfig, RecipeError, nearest
from .encoders import Encoder, open_model
from .features import Features
from .knn import knn
from .linear import accuracy_of, kfold_accuracy, linear_accuracy, linear_svm_accuracy, logistic_regression
from .protocols import KNN, KNN_PROTOCOLS, PROTOCOLS, SVM, Logistic, LowShot, Retrieval, SeveralSVM, Supervised
from .results import to_json
from .retrieval import evaluate_clips, mean_average_precision
from .scores import is_share, spread, standard_error
from .several import several_svms, several_targets
from .store import CACHE, features_of


logger = logging.getLogger(__name__)

Frozen = KNN | Logistic | SVM | SeveralSVM | LowShot | Retrieval
Settings = Frozen | Supervised
Parts = dict[str, dict[str, Features]]  # "bank" and "queries", or "examples" -> name -> features


@dataclass(frozen=True)
class How:
    """How features are made: see `features_of`; `layer`, `num_clips` as of `open_model`."""

    num_clips: int = 10
    layer: str | None = None
    precision: str | None = None  # default: what `auto` chooses
    cache: Path | None = CACHE


def settings_of(protocol: str, name: str | None, monitor: MonitorConfig | None = None) -> Settings:
    """The settings of "knn", "linear" .. by their name; of kNN without one those of `monitor`.

    Raises:
        RecipeError: there is no such protocol.
    """
    known: dict[str, Any] = PROTOCOLS[protocol]
    if name is None and protocol == "knn" and monitor is not None:
        return replace(KNN_PROTOCOLS["hf_ssl"], k=(monitor.k,), temperature=monitor.temperature)
    chosen = next(iter(known)) if name is None else name
    if chosen not in known:
        raise RecipeError(f"There is no protocol {chosen!r} of {protocol}{nearest(chosen, known)}")
    return known[chosen]


def evaluate(
    protocol: str,
    model: str,
    data: DataConfig,
    monitor: MonitorConfig,
    *,
    settings: Frozen | None = None,
    folds: str | None = None,
    baselines: bool = False,
    how: How | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """A saved encoder on a labeled dataset; every process must call it, and the main one gets the result.

    An encoder of images gives "knn", "linear", "lowshot" or "map" (class retrieval); AVID's gives them for each tower
    ("knn_video" ..) on videos with sound, or for the audio tower on sound alone, and retrieval between the towers.

    Args:
        protocol: "knn", "linear", "lowshot" or "retrieval"; "linear" with `SeveralSVM` gives "map".
        model: see `open_model`.
        settings: see `settings_of`.
        folds: column of fold numbers: the mean over them instead of two splits, as ESC-50 wants it.
        baselines: also of an untrained network of the same kind, and of raw pixels.
        changes: of `how`, or `classifier`, a protocol's name.

    Returns:
        Plain data: accuracies (0..1) by name, `errors` (the standard error of each), `spread` over draws, `chosen`,
        the numbers of examples, `measured` (see `measured_on`), the files that `failed`, and `baselines`.

    Raises:
        RecipeError: the model or the data cannot be loaded, or do not suit the protocol.
    """
    settings = settings or _frozen(protocol, changes.pop("classifier", None), monitor)
    how = replace(how or How(), **changes)
    encoder = open_model(model, how.num_clips, how.layer)
    medium = _medium(protocol, encoder, data)
    sources, targets, classes = _sources(protocol, settings, data, monitor, medium, folds)
    measured = measured_on(sources.get("bank"), sources.get("queries"), max(getattr(settings, "k", (0,))))
    measured |= {"num_classes": len(classes)} if classes else {}
    for note in measured.get("notes", ()):
        logger.warning(note)

    def measure(one: Encoder) -> dict[str, Any]:
        parts = {name: _features(one, source, data, monitor, how) for name, source in sources.items()}
        if not process_state().is_main_process:
            return {}
        for name, asked in targets.items():
            parts[name] = {tower: replace(f, labels=asked[f.examples]) for tower, f in parts[name].items()}
        for name, source in sources.items():
            _check(parts[name], source, protocol, data)
        split, some = monitor.bank_split, _some(next(iter(parts.values())))
        of_each = None if folds is None else _folds(data, split, folds, some, medium)
        return _measure(protocol, settings, parts, encoder.modality.towers, of_each, classes)

    result = measure(encoder)
    if baselines:
        result["baselines"] = {one.name: measure(one) for one in _baselines(encoder)}
    more = (how.layer and f"layer {how.layer}", folds and f"folds of {folds}")
    about = {"protocol": protocol, "layer": how.layer, "settings": asdict(settings), "measured": measured}
    return result | about | {"said": ", ".join(filter(None, [settings.said(), *more]))}


def _frozen(protocol: str, name: str | None, monitor: MonitorConfig) -> Frozen:
    chosen = settings_of(protocol, name, monitor)
    if isinstance(chosen, Supervised):
        raise RecipeError(f"{name or protocol} trains: call hf_ssl.training.supervised.supervised.")
    return chosen


def _baselines(encoder: Encoder) -> list[Encoder]:
    """What a figure has to stand beside."""
    pixels = [encoder.raw_pixels()] if encoder.modality.towers == ("",) else []
    return [encoder.untrained(), *pixels]


def _medium(protocol: str, encoder: Encoder, data: DataConfig) -> str:
    """What is read of the data."""
    medium = encoder.modality.medium_of(data)
    if protocol == "retrieval" and medium != encoder.modality.medium:
        raise RecipeError(f"{data.path} holds sound alone; retrieval needs videos with sound.")
    return medium


def _sources(
    protocol: str, settings: Frozen, data: DataConfig, monitor: MonitorConfig, medium: str, folds: str | None
) -> tuple[dict[str, Source], dict[str, torch.Tensor], list[Any]]:
    """ "bank" and "queries", or "examples"; and where each has several labels, these as (N, K), and the K classes."""
    if isinstance(settings, SeveralSVM):
        if folds is not None:
            raise RecipeError("--folds is for one class an example; leave it out with several labels.")
        return several_targets(data, monitor, medium)
    where = replace(data, label_column=monitor.label_column)
    if folds is not None:
        return {"examples": labelled_source(where, monitor.bank_split, medium)}, {}, []
    if protocol == "retrieval":
        return {"examples": unlabelled_queries(where, monitor, medium)}, {}, []
    bank, queries = labelled_sources(data, monitor, medium, trained_on=False)
    if bank is None or queries is None:
        raise RecipeError(f"{data.path} has no labels to measure {protocol} accuracy with; see --label-column.")
    return {"bank": bank, "queries": queries}, {}, []


def _features(
    encoder: Encoder, source: Source, data: DataConfig, monitor: MonitorConfig, how: How
) -> dict[str, Features]:
    precision = how.precision or best_precision() or "no"
    size = {"batch_size": monitor.batch_size, "num_workers": data.num_workers}
    return features_of(encoder, source, precision=precision, cache=how.cache, **size)


def _check(part: dict[str, Features], source: Source, protocol: str, data: DataConfig) -> None:
    """Raises RecipeError where nothing could be read, or no example has a label."""
    some = next(iter(part.values()))
    if len(some) == 0:
        raise RecipeError(f"None of {len(some.failed)} files could be read, the first is {some.failed[0]}.")
    if protocol != "retrieval" and not (some.labels >= 0).any():
        raise RecipeError(f"No example of the split {source.split!r} of {data.path} has a label.")


def _measure(
    protocol: str,
    settings: Frozen,
    parts: Parts,
    towers: tuple[str, ...],
    folds: torch.Tensor | None,
    classes: list[Any],
) -> dict[str, Any]:
    """All figures of one encoder."""
    result: dict[str, Any] = {"failed": [name for part in parts.values() for name in _some(part).failed]}
    result |= {name: len(_some(part)) for name, part in parts.items()}
    result |= {"errors": {}, "spread": {}, "chosen": {}}
    if protocol == "retrieval" and len(towers) > 1:
        return result | evaluate_clips([], parts["examples"])
    for tower in (name for name in towers if name in next(iter(parts.values()))):
        sides = {name: part[tower].labelled() for name, part in parts.items()}
        values, more = _of_tower(settings, sides, folds)
        for name, value in values.items():
            key = f"{name}_{tower}".rstrip("_")
            result[key] = value
            if name in more.get("error", {}):
                result["errors"][key] = more["error"][name]
            elif is_share(name):
                result["errors"][key] = standard_error(value, _judged(sides))
            if name in more.get("spread", {}):
                result["spread"][key] = more["spread"][name]
        if "classes" in more:
            of_class = {str(one): found for one, found in zip(classes, more["classes"], strict=True)}
            result.setdefault("classes", {})[tower or "encoder"] = of_class
        result["chosen"] |= {f"{name}_{tower}".rstrip("_"): value for name, value in more.get("chosen", {}).items()}
    return result


def _some(part: dict[str, Features]) -> Features:
    return next(iter(part.values()))


def _judged(sides: dict[str, Features]) -> int:
    return len(sides.get("queries", sides.get("examples", ())))


def _of_tower(
    settings: Frozen, sides: dict[str, Features], folds: torch.Tensor | None
) -> tuple[dict[str, float], dict[str, Any]]:
    """Figures by name, and what there is to say of them."""
    if isinstance(settings, Retrieval):
        return mean_average_precision(sides["examples"]), {}
    if isinstance(settings, SeveralSVM):
        value, of_class = several_svms(sides["bank"], sides["queries"], costs=settings.costs)
        return {"map": value}, {"classes": of_class}
    if isinstance(settings, LowShot):
        return _low_shot(settings, sides["bank"], sides["queries"])
    if isinstance(settings, KNN):
        how = {"k": settings.k, "temperature": settings.temperature, "normalize": settings.normalize}
        found = knn(sides["bank"], sides["queries"], **how)  # type: ignore[arg-type]  # a dict of three types
        first, *others = settings.k
        named = _named("knn", found[first])
        return named | {f"knn_k{k}": found[k]["top1"] for k in others}, {}
    if folds is not None:
        return {"linear": kfold_accuracy(sides["examples"], folds, accuracy=partial(_linear, settings))}, {}
    if isinstance(settings, SVM) or settings.weight_decay is not None:
        return {"linear": _linear(settings, sides["bank"], sides["queries"])}, {}
    model, c = logistic_regression(sides["bank"], cs=settings.cs)
    return _named("linear", accuracy_of(model, sides["queries"])), {"chosen": {"C": c}}


def _linear(settings: Logistic | SVM, train: Features, test: Features) -> float:
    """Accuracy on `test` of a classifier fitted to `train`, of which a part chooses where something is chosen."""
    if isinstance(settings, SVM):
        return linear_svm_accuracy(train, test, c=settings.c)
    if settings.weight_decay is not None:
        return linear_accuracy(train, test, weight_decay=settings.weight_decay)
    return accuracy_of(logistic_regression(train, cs=settings.cs)[0], test)["top1"]


def _named(name: str, found: dict[str, float]) -> dict[str, float]:
    return {name: found["top1"]} | {f"{name}_{key}": value for key, value in found.items() if key != "top1"}


def _low_shot(settings: LowShot, bank: Features, queries: Features) -> tuple[dict[str, float], dict[str, Any]]:
    """The mean over draws of the examples that are learned from."""
    found = []
    for draw in range(settings.draws):
        place, size = place_in_class(bank.labels.cpu().numpy(), seed=draw)
        few = settings.per_class if settings.share is None else (settings.share * size).round().clip(1)
        rows = torch.from_numpy((place < few).nonzero()[0])
        model, _ = logistic_regression(bank.select(rows), cs=(settings.c,))
        found.append(_named("lowshot", accuracy_of(model, queries)))
    over = {name: spread([one[name] for one in found]) for name in found[0]}
    values = {name: one["value"] for name, one in over.items()}
    more = {"spread": {name: one["spread"] for name, one in over.items()}}
    return values, more | {"error": {name: one["standard_error"] for name, one in over.items()}}


def _folds(data: DataConfig, split: str, column: str, found: Features, medium: str) -> torch.Tensor:
    """The folds of the labeled examples."""
    dataset = open_place(data, False, medium)[split]
    if column not in dataset.features:
        raise RecipeError(f"{data.path} has no column {column!r}{nearest(column, dataset.features)}")
    if found.failed:
        raise RecipeError(
            f"{len(found.failed)} files of {data.path} could not be read, the first is {found.failed[0]}; mend or "
            "remove them first."
        )
    numbers = {name: i for i, name in enumerate(dict.fromkeys(dataset[column]))}
    folds = torch.tensor([numbers[name] for name in dataset[column]])[(found.labels >= 0).cpu()]
    if len(folds.unique()) < 2:
        raise RecipeError(f"The column {column!r} of {data.path} has one fold only.")
    return folds.to(found.labels.device)


def keep(result: dict[str, Any], model: str, data: DataConfig, name: str | None, output: Path | None) -> Path | None:
    """Write a result to `results/<protocol>_<dataset>.json` in the model's folder, or to `output`; None where there is
    neither.

    Raises:
        UserError: the disk refused it.
    """
    inner = Path(model) / "model"
    folder = inner if inner.is_dir() else Path(model)
    protocol = result.get("protocol", "") + ("" if name is None else f"-{name}")
    protocol += "" if result.get("layer") is None else f"-layer{result['layer']}"
    dataset = "_".join(Path(str(data.path)).with_suffix("").parts[-1:]) or "data"
    safe = "".join(c if c.isalnum() or c in "-_.%" else "_" for c in f"{protocol}_{dataset}")
    if output is None and not (folder / "config.json").exists():
        return None
    file = output if output is not None else folder / "results" / f"{safe}.json"
    device = str(process_state().device)
    about: dict[str, Any] = {"model": model, "data": str(data.path), "name": name, "command": " ".join(sys.argv[1:])}
    about |= {"hardware": hardware(process_state().num_processes, device), "versions": versions()}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(file, to_json(result | about))
    except OSError as error:
        raise UserError(f"The result could not be written to {file} ({error}); see --output.") from error
    return file
