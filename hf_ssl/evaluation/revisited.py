# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Retrieval on ROxford5k and RParis6k, the revisited Oxford and Paris buildings.

https://huggingface.co/papers/1803.11285; https://github.com/filipradenovic/revisitop, whose evaluate.py this computes.
Queries are cropped to their boxes. In the easy setup, easy images are positives and hard ones junk, which is removed
from a ranking; in medium, both are positives; in hard, the reverse of easy. Queries without positives are ignored.
"""

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from ..coerce import listed
from ..data.sources import Source, available_splits, load_source
from ..disk import first_line
from ..hub.pickles import read_pickle
from ..recipe import DataConfig, MonitorConfig, RecipeError
from .features import Features
from .scores import spread


_SETUPS = {  # positives, and junk
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}
_RANKS = (1, 5, 10)
_FEW = 5  # names in a message


def read_ground_truth(file: str) -> dict[str, Any]:
    """`imlist`, `qimlist`: names of images and queries; `gnd`: for each query, `bbx` and the indices of `easy`, `hard`
    and `junk` images.

    Raises:
        RecipeError: it is not such a file.
    """
    wrong = f"{file} is not a ground truth file of ROxford or RParis (gnd_roxford5k.pkl, gnd_rparis6k.pkl)"
    try:
        content = read_pickle(Path(file), "such ground truth")
        images, queries = ([str(name) for name in content[key]] for key in ("imlist", "qimlist"))
        truth = []
        for one in content["gnd"]:
            numbers = {key: [int(number) for number in one[key]] for key in ("easy", "hard", "junk")}
            left, top, right, bottom = (round(float(side)) for side in one["bbx"])
            if not all(0 <= number < len(images) for some in numbers.values() for number in some):
                raise ValueError("it refers to images outside its list")
            truth.append({**numbers, "bbx": (left, top, right, bottom)})
        if len(truth) != len(queries):
            raise ValueError(f"it has {len(queries)} queries, but ground truth for {len(truth)}")
    except RecipeError:
        raise
    except Exception as error:  # broken or foreign files may raise anything
        raise RecipeError(f"{wrong}: {first_line(error)}.") from error
    return {"imlist": images, "qimlist": queries, "gnd": truth}


def revisited_sources(
    file: str, where: DataConfig, monitor: MonitorConfig
) -> tuple[dict[str, Source], dict[str, torch.Tensor]]:
    """The images as "bank", the cropped queries as "queries", and their indices in the ground truth.

    Raises:
        RecipeError: an image is missing.
    """
    truth = read_ground_truth(file)
    splits = available_splits(where)
    split = monitor.query_split if monitor.query_split in splits else next(iter(splits))
    source = load_source(where, split).unlabeled()
    paths = ((source.record(index) or {}).get("path") or "" for index in range(len(source)))
    rows = {Path(path).stem: index for index, path in enumerate(paths)}
    names = truth["imlist"] + truth["qimlist"]
    if missing := [name for name in names if name not in rows]:
        raise RecipeError(
            f"{len(missing)} of the {len(names)} images of {file} are not in {where.path}, such as "
            f"{listed(missing[:_FEW])}."
        )
    bank = source.select([rows[name] for name in truth["imlist"]], "images")
    queries = source.select([rows[name] for name in truth["qimlist"]], "queries, cropped to their boxes")
    queries.boxes = [one["bbx"] for one in truth["gnd"]]
    numbers = {"bank": torch.arange(len(bank)), "queries": torch.arange(len(queries))}
    return {"bank": bank, "queries": queries}, numbers


def revisited_map(file: str, bank: Features, queries: Features) -> dict[str, Any]:
    """ "map_easy", "mp1_easy" .. for the three setups, and their standard errors over the queries.

    Raises:
        RecipeError: an image could not be read.
    """
    truth = read_ground_truth(file)["gnd"]
    if failed := bank.failed + queries.failed:
        raise RecipeError(f"{len(failed)} images could not be read, the first is {failed[0]}; download them again.")
    asked = F.normalize(queries.block(0, len(queries)), dim=1)
    similarity = torch.cat([asked @ F.normalize(keys, dim=1).T for _, keys in bank.blocks()], 1)
    order = similarity.argsort(dim=1, descending=True, stable=True).cpu()
    found: dict[str, Any] = {"errors": {}}
    for setup, (right, junk) in _SETUPS.items():
        rows = []
        for ranking, one in zip(order, truth, strict=True):
            answers = [torch.tensor([n for key in keys for n in one[key]]) for keys in (right, junk)]
            if len(answers[0]):
                rows.append(precisions(ranking, *answers))
        if not rows:
            continue
        columns = zip(("map", *(f"mp{k}" for k in _RANKS)), zip(*rows, strict=True), strict=True)
        for name, values in columns:
            mean = spread(list(values))
            found[f"{name}_{setup}"] = mean["value"]
            found["errors"][f"{name}_{setup}"] = mean["standard_error"]
    return found


def precisions(ranking: torch.Tensor, right: torch.Tensor, junk: torch.Tensor) -> list[float]:
    """Average precision of a ranking, by the trapezoidal rule, and precision at 1, 5 and 10, up to the last positive.

    Args:
        ranking: indices of all images, most similar first.
        right, junk: indices of the positives, and of images to remove.
    """
    kept = ranking[~torch.isin(ranking, junk)]
    places = torch.isin(kept, right).nonzero().flatten().double()  # zero-based
    count = torch.arange(len(places), dtype=torch.float64)
    before = torch.where(places > 0, count / places.clamp(min=1), 1.0)
    average = ((before + (count + 1) / (places + 1)) / (2 * len(right))).sum().item()
    last = int(places[-1]) + 1 if len(places) else math.inf
    depths = [min(last, k) for k in _RANKS]
    return [average, *((places < depth).sum().item() / depth for depth in depths)]
