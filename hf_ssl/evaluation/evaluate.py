# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Evaluate frozen encoders with the protocols of `hf_ssl.evaluation.protocols`.

Features are embedded once (`hf_ssl.evaluation.store`) and shared by all protocols. No hyperparameter is chosen on the
test examples; it is chosen on a held-out part of the training examples.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..data.bank import labeled_source, labeled_sources, measured_on, place_in_class
from ..data.media import MEDIA
from ..data.places import open_place
from ..data.sources import Source
from ..devices import best_precision, process_state
from ..recipe import DataConfig, MonitorConfig, RecipeError, nearest
from .encoders import Encoder, open_model
from .features import Features
from .knn import knn
from .linear import accuracy_of, kfold_accuracy, linear_accuracy, linear_svm_accuracy, logistic_regression
from .lists import rows_named
from .protocols import KNN, KNN_PROTOCOLS, PROTOCOLS, SVM, Dense, Logistic, LowShot, Retrieval, SeveralSVM, Supervised
from .results import figures
from .retrieval import evaluate_clips, gallery, has_pairs, mean_average_precision
from .revisited import revisited_map, revisited_sources
from .scores import spread, standard_error
from .several import several_svms, several_targets
from .store import CACHE, features_of


logger = logging.getLogger(__name__)

Frozen = KNN | Logistic | SVM | SeveralSVM | LowShot | Retrieval
Settings = Frozen | Supervised | Dense
Parts = dict[str, dict[str, Features]]  # "bank" and "queries", or "examples" -> name -> features


@dataclass(frozen=True)
class How:
    """How features are computed: see `features_of`; `layer` and `num_clips` as in `open_model`."""

    num_clips: int = 10
    layer: str | None = None
    precision: str | None = None  # default: as train.precision=auto
    cache: Path | None = CACHE


def settings_of(
    protocol: str,
    name: str | None,
    monitor: MonitorConfig | None = None,
    *,
    lists: Sequence[str] | None = None,
    ground_truth: str | None = None,
) -> Settings:
    """Settings of a protocol of "knn", "linear" ..; without a name, kNN uses the settings of `monitor`.

    Args:
        lists: files for the low-shot protocol "list", see `LowShot`.
        ground_truth: file for the retrieval protocol "revisited", see `hf_ssl.evaluation.revisited`.

    Raises:
        RecipeError: unknown protocol, or its file is not given.
    """
    known: dict[str, Any] = PROTOCOLS[protocol]
    if name is None and protocol == "knn" and monitor is not None:
        return replace(KNN_PROTOCOLS["hf_ssl"], k=(monitor.k,), temperature=monitor.temperature)
    chosen = next(iter(known)) if name is None else name
    if chosen not in known:
        raise RecipeError(f"{protocol} has no protocol {chosen!r}{nearest(chosen, known)}")
    if chosen == "list" and not lists:
        raise RecipeError("--protocol list needs the names of the training images; pass --list FILE.")
    if chosen == "revisited" and not ground_truth:
        raise RecipeError("--protocol revisited needs its annotations; pass --ground-truth gnd_roxford5k.pkl.")
    if chosen == "list":
        return replace(known[chosen], lists=tuple(map(str, lists or ())))
    return replace(known[chosen], ground_truth=ground_truth) if chosen == "revisited" else known[chosen]


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
    """Evaluate a saved encoder on a labeled dataset. Every process must call this; the main process gets the result.

    Image encoders give "knn", "linear", "lowshot" or "map" (class retrieval). AVID models give these per tower
    ("knn_video" ..) on videos with sound, or only for the audio tower on sound, and cross-modal retrieval.

    Args:
        protocol: "knn", "linear", "lowshot" or "retrieval"; "linear" with `SeveralSVM` gives "map".
        model: see `open_model`.
        settings: see `settings_of`.
        folds: column of fold numbers, to cross-validate instead of using two splits (ESC-50).
        baselines: also evaluate an untrained network of the same kind, and raw pixels.
        changes: fields of `how`, or `classifier`, a protocol's name.

    Returns:
        Plain data: accuracies (0..1) by name, `errors` (their standard errors), `spread` over draws, `chosen`
        hyperparameters, numbers of examples, `measured` (see `measured_on`), `failed` files, and `baselines`.

    Raises:
        RecipeError: the model or the data cannot be loaded or do not fit the protocol.
    """
    settings = settings or _frozen(protocol, changes.pop("classifier", None), monitor)
    how = replace(how or How(), **changes)
    encoder = open_model(model, how.num_clips, how.layer)
    medium = encoder.modality.medium_of(data)
    sources, targets, classes = _sources(protocol, settings, data, monitor, medium, folds)
    lists = settings.lists if isinstance(settings, LowShot) else ()
    draws = [rows_named(sources["bank"], file) for file in lists]
    measured = measured_on(sources.get("bank"), sources.get("queries"), max(getattr(settings, "k", (0,))))
    measured |= {"num_classes": len(classes)} if classes else {}
    if protocol == "retrieval" and "examples" in sources:  # each example is a query against all others
        measured = measured_on(None, sources["examples"], 0) | {"examples": sources["examples"].part}
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
        if isinstance(settings, Retrieval) and settings.ground_truth:
            return _figures_of(parts) | revisited_map(settings.ground_truth, parts["bank"][""], parts["queries"][""])
        split, some = monitor.bank_split, _some(next(iter(parts.values())))
        of_each = None if folds is None else _folds(data, split, folds, some, medium)
        return _measure(protocol, settings, parts, encoder.modality.towers, (of_each, draws), classes)

    result = measure(encoder)
    if baselines:
        result["baselines"] = {one.name: measure(one) for one in _baselines(encoder)}
    more = (how.layer and f"layer {how.layer}", folds and f"folds of {folds}")
    about = {"protocol": protocol, "layer": how.layer, "settings": asdict(settings), "measured": measured}
    return result | about | {"said": ", ".join(filter(None, [settings.said(), *more]))}


def _frozen(protocol: str, name: str | None, monitor: MonitorConfig) -> Frozen:
    chosen = settings_of(protocol, name, monitor)
    if isinstance(chosen, Supervised | Dense):
        module = "dense.dense" if isinstance(chosen, Dense) else "supervised.supervised"
        raise RecipeError(f"{name or protocol} trains a model; call hf_ssl.training.{module} instead.")
    return chosen


def _baselines(encoder: Encoder) -> list[Encoder]:
    """Baselines to compare a figure with."""
    pixels = [encoder.raw_pixels(), encoder.random_projection()] if encoder.modality.towers == ("",) else []
    return [encoder.untrained(), *pixels]


def _sources(
    protocol: str, settings: Frozen, data: DataConfig, monitor: MonitorConfig, medium: str, folds: str | None
) -> tuple[dict[str, Source], dict[str, torch.Tensor], list[Any]]:
    """ "bank" and "queries", or "examples"; with several labels per example also the labels (N, K) and K classes."""
    if isinstance(settings, SeveralSVM):
        if folds is not None:
            raise RecipeError("--folds needs a single label per example; remove it.")
        return several_targets(data, monitor, medium)
    where = replace(data, label_column=monitor.label_column)
    if folds is not None:
        return {"examples": labeled_source(where, monitor.bank_split, medium)}, {}, []
    if isinstance(settings, Retrieval) and settings.ground_truth:
        if not MEDIA[medium].pixels:
            raise RecipeError("--ground-truth is only for image encoders; remove it.")
        return (*revisited_sources(settings.ground_truth, where, monitor), [])
    if protocol == "retrieval":
        return {"examples": gallery(where, monitor, medium)}, {}, []
    bank, queries = labeled_sources(data, monitor, medium, trained_on=False)
    if bank is None or queries is None:
        raise RecipeError(f"{data.path} has no labels, which {protocol} needs; see --label-column.")
    return {"bank": bank, "queries": queries}, {}, []


def _features(
    encoder: Encoder, source: Source, data: DataConfig, monitor: MonitorConfig, how: How
) -> dict[str, Features]:
    precision = how.precision or best_precision() or "no"
    size = {"batch_size": monitor.batch_size, "num_workers": data.num_workers}
    return features_of(encoder, source, precision=precision, cache=how.cache, **size)


def _check(part: dict[str, Features], source: Source, protocol: str, data: DataConfig) -> None:
    """Raise RecipeError if no example could be read, or none has a label."""
    some = next(iter(part.values()))
    if len(some) == 0:
        raise RecipeError(f"None of the {len(some.failed)} files could be read, the first is {some.failed[0]}.")
    if protocol != "retrieval" and not (some.labels >= 0).any():
        raise RecipeError(f"No example of the split {source.split!r} of {data.path} has a label.")


def _measure(
    protocol: str,
    settings: Frozen,
    parts: Parts,
    towers: tuple[str, ...],
    more: tuple[torch.Tensor | None, list[torch.Tensor]],
    classes: list[Any],
) -> dict[str, Any]:
    """All figures of one encoder; `more`: folds, and examples of each list."""
    result = _figures_of(parts)
    if protocol == "retrieval" and len(towers) > 1:
        result |= evaluate_clips([], parts["examples"])
        shares = {key: value for key, value in figures(result).items() if not key.endswith("rank")}
        result["errors"] = {key: standard_error(value, result["examples"]) for key, value in shares.items()}
    known = [name for name in towers if name in next(iter(parts.values()))]
    for tower in known:
        sides = {name: part[tower].labeled() for name, part in parts.items()}
        if protocol == "retrieval" and not has_pairs(sides["examples"]):
            if figures(result):
                continue
            raise RecipeError("Retrieval by class needs a class with two examples; see --label-column.")
        values, about = _of_tower(settings, sides, more)
        for name, value in values.items():
            key = f"{name}_{tower}".rstrip("_")
            result[key] = value
            error = about.get("error", {}).get(name)
            result["errors"][key] = standard_error(value, _judged(sides)) if error is None else error
            if name in about.get("spread", {}):
                result["spread"][key] = about["spread"][name]
        if "classes" in about:
            of_class = {str(one): found for one, found in zip(classes, about["classes"], strict=True)}
            result.setdefault("classes", {})[tower or "encoder"] = of_class
        result["chosen"] |= {f"{name}_{tower}".rstrip("_"): value for name, value in about.get("chosen", {}).items()}
    return result


def _figures_of(parts: Parts) -> dict[str, Any]:
    """Metadata of a result, without figures."""
    result: dict[str, Any] = {"failed": [name for part in parts.values() for name in _some(part).failed]}
    result |= {name: len(_some(part)) for name, part in parts.items()}
    return result | {"errors": {}, "spread": {}, "chosen": {}}


def _some(part: dict[str, Features]) -> Features:
    return next(iter(part.values()))


def _judged(sides: dict[str, Features]) -> int:
    return len(sides.get("queries", sides.get("examples", ())))


def _of_tower(
    settings: Frozen, sides: dict[str, Features], more: tuple[torch.Tensor | None, list[torch.Tensor]]
) -> tuple[dict[str, float], dict[str, Any]]:
    """Figures by name, and metadata about them."""
    folds, draws = more
    if isinstance(settings, Retrieval):
        told = mean_average_precision(sides["examples"])
        return told, {"error": told.pop("errors")}
    if isinstance(settings, SeveralSVM):
        value, of_class, error = several_svms(sides["bank"], sides["queries"], costs=settings.costs)
        return {"map": value}, {"classes": of_class, "error": {"map": error}}
    if isinstance(settings, LowShot):
        return _low_shot(settings, sides["bank"], sides["queries"], draws)
    if isinstance(settings, KNN):
        how = {"k": settings.k, "temperature": settings.temperature, "normalize": settings.normalize}
        found = knn(sides["bank"], sides["queries"], **how)  # type: ignore[arg-type]  # a dict of three types
        first, *others = settings.k
        named, errors = _named("knn", found[first])
        return named | {f"knn_k{k}": found[k]["top1"] for k in others}, {"error": errors}
    if folds is not None:
        return {"linear": kfold_accuracy(sides["examples"], folds, accuracy=partial(_linear, settings))}, {}
    if isinstance(settings, SVM) or settings.weight_decay is not None:
        return {"linear": _linear(settings, sides["bank"], sides["queries"])}, {}
    model, c = logistic_regression(sides["bank"], cs=settings.cs)
    named, errors = _named("linear", accuracy_of(model, sides["queries"]))
    return named, {"chosen": {"C": c}, "error": errors}


def _linear(settings: Logistic | SVM, train: Features, test: Features) -> float:
    """Accuracy on `test` of a classifier fitted to `train`; hyperparameters come from a held-out part of `train`."""
    if isinstance(settings, SVM):
        return linear_svm_accuracy(train, test, c=settings.c)
    if settings.weight_decay is not None:
        return linear_accuracy(train, test, weight_decay=settings.weight_decay)
    return accuracy_of(logistic_regression(train, cs=settings.cs)[0], test)["top1"]


def _named(name: str, found: dict[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
    """Figures and errors of `Scores`, named after the protocol."""
    errors = {f"{name}_{key}": value for key, value in found["errors"].items()}
    values = {name if key == "top1" else f"{name}_{key}": value for key, value in found.items() if key != "errors"}
    return values, errors


def _low_shot(
    settings: LowShot, bank: Features, queries: Features, lists: list[torch.Tensor]
) -> tuple[dict[str, float], dict[str, Any]]:
    """Mean over several draws, or lists, of training examples."""
    draws = lists or [few_of(settings, bank, draw) for draw in range(settings.draws)]
    if all(torch.equal(draws[0], draw) for draw in draws):  # the same examples each time
        draws = draws[:1]
    found: list[dict[str, float]] = []
    errors: dict[str, float] = {}
    for chosen in draws:
        rows = torch.isin(bank.numbers, chosen) if lists else chosen
        model, _ = logistic_regression(bank.select(rows.nonzero().flatten()), cs=(settings.c,))
        one, errors = _named("lowshot", accuracy_of(model, queries))
        found.append(one)
    if len(found) == 1:  # the standard error is over the test examples
        return found[0], {"error": errors}
    over = {name: spread([one[name] for one in found]) for name in found[0]}
    values = {name: one["value"] for name, one in over.items()}
    about = {"spread": {name: one["spread"] for name, one in over.items()}}
    return values, about | {"error": {name: one["standard_error"] for name, one in over.items()}}


def few_of(settings: LowShot, bank: Features, draw: int) -> torch.Tensor:
    """Mask (N,) of the bank examples in a draw."""
    place, size = place_in_class(bank.labels.cpu().numpy(), seed=draw)
    few = settings.per_class if settings.share is None else (settings.share * size).round().clip(1)
    return torch.from_numpy(place < few)


def _folds(data: DataConfig, split: str, column: str, found: Features, medium: str) -> torch.Tensor:
    """Folds of the labeled examples."""
    dataset = open_place(data, False, medium)[split]
    if column not in dataset.features:
        raise RecipeError(f"{data.path} has no column {column!r}{nearest(column, dataset.features)}")
    if found.failed:
        raise RecipeError(
            f"{len(found.failed)} files of {data.path} could not be read, the first is {found.failed[0]}; fix or "
            "remove them."
        )
    numbers = {name: i for i, name in enumerate(dict.fromkeys(dataset[column]))}
    folds = torch.tensor([numbers[name] for name in dataset[column]])[(found.labels >= 0).cpu()]
    if len(folds.unique()) < 2:
        raise RecipeError(f"The column {column!r} of {data.path} has only one fold.")
    return folds.to(found.labels.device)
