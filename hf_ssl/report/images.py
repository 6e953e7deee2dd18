# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Report sections for image encoders: a map, neighbors, feature maps in color, singular values."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..data.bank import balanced_sample, labeled_sources
from ..data.sources import Source, load_source
from ..data.streams import open_stream
from ..evaluation.encoders import Encoder
from ..evaluation.features import Features
from ..recipe import DataConfig, MonitorConfig
from .curves import singular_values
from .maps import every_vector, map_of, title_of
from .pictures import Sheet, data_uri, enlarged, principal_colors, spectrum, style, thumbnail


MAP, BANK = 400, 2000  # examples on the map, and in the gallery of neighbors
_QUERIES, _NEIGHBORS, _MAPS = 8, 6, 12  # rows and columns of the grid, number of feature maps
_CELLS = 7  # minimum positions per side for a feature map to show anything
_PICTURE = 112  # pixels per side of a feature map's picture
_VERDICT = {True: "right", False: "wrong"}


def sections(encoder: Encoder, data: DataConfig, monitor: MonitorConfig, sheet: Sheet) -> dict[str, Any]:
    """Data of images for `page.html`.

    Raises:
        UserError: the data cannot be read.
    """
    bank, queries = _examples(data, monitor)
    chosen = balanced_sample(queries.numbers, MAP)
    queries = queries.select(chosen, queries.part)
    bank = bank.select(balanced_sample(bank.numbers, BANK), bank.part)
    asked, known = every_vector(encoder, queries)[""], every_vector(encoder, bank)[""]
    if len(asked) < 3 or len(known) < 3:
        failed = asked.failed + known.failed
        return {"problem": f"Too few images could be read; the first failure is {failed[:1]}."}
    numbers = {int(example): sheet.add(queries.image(int(example))) for example in asked.examples}
    names = sorted({str(one) for one in queries.classes() if one is not None})
    untrained = every_vector(encoder.untrained(), queries)[""]
    spectra = {"trained": spectrum(asked.vectors), "untrained": spectrum(untrained.vectors)}
    found: dict[str, Any] = {
        "examples": f"{len(asked)} images of {queries.part}; neighbors among {len(known)} of {bank.part}",
        "classes": names,
        "map": map_of(asked, queries, numbers, names),
        "neighbors": _neighbors(asked, known, queries, bank, numbers, sheet),
        "singular_values": singular_values(spectra),
    }
    return found | _feature_colors(encoder, queries, [int(i) for i in asked.examples])


def _examples(data: DataConfig, monitor: MonitorConfig) -> tuple[Source, Source]:
    """Bank and queries, with labels if there are any; otherwise the same images on both sides."""
    bank, queries = (None, None) if data.streaming else labeled_sources(data, monitor, trained_on=True)
    if bank is None or queries is None:
        source: Any = open_stream(data).head(BANK) if data.streaming else load_source(data)
        return source, source
    return bank, queries


def _neighbors(
    asked: Features, known: Features, queries: Source, bank: Source, numbers: dict[int, int], sheet: Sheet
) -> list[list[dict[str, Any]]]:
    """Rows of a query and its nearest neighbors: thumbnail, name, cosine, and whether the class is the same."""
    rows, same = [], queries.columns == bank.columns and queries.dataset is bank.dataset
    every = max(1, len(asked) // _QUERIES)
    for place in range(every // 2, len(asked), every)[:_QUERIES]:
        example, own = int(asked.examples[place]), asked.vectors[place]
        cosines = known.vectors @ F.normalize(own, dim=0) / known.vectors.norm(dim=1).clamp(min=1e-12)
        if same:  # exclude the image itself
            cosines[known.examples == example] = -torch.inf
        row = [{"style": style(numbers[example]), "title": title_of(queries, example), "kind": "query"}]
        for near in cosines.topk(min(_NEIGHBORS, len(cosines))).indices.tolist():
            other = int(known.examples[near])
            label = int(known.labels[near])
            right = "" if min(label, int(asked.labels[place])) < 0 else _VERDICT[label == int(asked.labels[place])]
            shown = {"style": style(sheet.add(bank.image(other))), "title": title_of(bank, other), "kind": right}
            row.append(shown | {"cosine": f"{cosines[near]:.2f}"})
        rows.append(row)
    return rows


def _feature_colors(encoder: Encoder, source: Source, readable: list[int]) -> dict[str, Any]:
    """Pictures of the deepest sufficiently large feature map, next to the images; {} for networks without maps."""
    chosen = [readable[i] for i in np.linspace(0, len(readable) - 1, min(_MAPS, len(readable))).round().astype(int)]
    arrays = [encoder.transform.read(source, example) for example in chosen]
    joined = [torch.from_numpy(np.concatenate(part)) for part in zip(*arrays, strict=True)]
    inputs = encoder.transform.inputs(*joined, device=torch.device("cpu"))
    with torch.no_grad():
        states: Any = encoder.model(**inputs, output_hidden_states=True).hidden_states or ()
    known = ((number, _positions(state)) for number, state in enumerate(states, 1))
    maps = [(number, one) for number, one in known if one is not None and one.shape[1] > 1]
    if not maps:
        return {}
    # The deepest one with enough positions, else the largest.
    large = [one for one in maps if one[1].shape[1] >= _CELLS] or [max(maps, key=lambda one: one[1].shape[1])]
    number, state = large[-1]
    colors = principal_colors(state.float().numpy())
    said = f"stage {number} of {len(states)}, {state.shape[1]} x {state.shape[2]} positions"
    pairs = [
        {
            "image": data_uri(thumbnail(source.image(example), _PICTURE)),
            "colors": data_uri(enlarged(one, _PICTURE), 90),
            "title": title_of(source, example),
        }
        for example, one in zip(chosen, colors, strict=True)
    ]
    return {"feature_maps": pairs, "feature_maps_of": said}


def _positions(state: torch.Tensor) -> torch.Tensor | None:
    """A hidden state as (N, H, W, C): a map, or tokens without prefix tokens; None for other shapes."""
    if state.ndim == 4:
        return state.permute(0, 2, 3, 1)
    side = int(state.shape[1] ** 0.5) if state.ndim == 3 else 0
    return state[:, -side * side :].unflatten(1, (side, side)) if side else None
