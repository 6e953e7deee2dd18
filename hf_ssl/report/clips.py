# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Report sections for audio-visual models: what each video retrieves among the sounds, and the reverse."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ..data.bank import labeled_sources, limited, unlabeled_queries
from ..data.sources import Source, available_splits
from ..evaluation.encoders import Encoder
from ..evaluation.features import Features
from ..evaluation.retrieval import retrieval
from ..recipe import DataConfig, MonitorConfig
from .curves import singular_values
from .maps import every_vector, map_of, title_of
from .pictures import Sheet, data_uri, spectrum


_CLIPS = 300  # gallery size
_QUERIES, _FOUND, _SIDE = 6, 4, 96  # rows, columns, pixels per side of a picture
_TOWERS = ("video", "audio")
_WAYS = (_TOWERS, _TOWERS[::-1])


def sections(encoder: Encoder, data: DataConfig, monitor: MonitorConfig, sheet: Sheet) -> dict[str, Any]:
    """Data of clips for `page.html`.

    Raises:
        UserError: the data cannot be read.
    """
    source = _examples(data, monitor)
    found = every_vector(encoder, source)
    video, audio = found["video_embeds"], found["audio_embeds"]
    if len(video) < 3:
        return {"problem": f"Too few clips could be read; the first failure is {video.failed[:1]}."}
    names = sorted({str(one) for one in source.classes() if one is not None})
    pictures = {int(example): _pictures(encoder, source, int(example)) for example in video.examples}
    numbers = {example: sheet.add(of_clip["video"]) for example, of_clip in pictures.items()}
    figures = retrieval(video.vectors, audio.vectors, video.labels if names else None)
    states = {"trained": found, "untrained": every_vector(encoder.untrained(), source)}
    spectra = {f"{tower}, {state}": spectrum(of[tower].vectors) for tower in _TOWERS for state, of in states.items()}
    return {
        "examples": f"{len(video)} clips of {source.part}",
        "classes": names,
        "map": map_of(video, source, numbers, names),
        "singular_values": singular_values(spectra),
        "retrieval": [
            {
                "way": f"{asking} to {answering}",
                "r1": f"{figures[f'{asking}_to_{answering}_r1']:.1%}",
                "rows": _rows(found, asking, answering, source, pictures),
            }
            for asking, answering in _WAYS
        ],
    }


def _examples(data: DataConfig, monitor: MonitorConfig) -> Source:
    """Unseen clips if there are any, else training clips."""
    _, queries = labeled_sources(data, monitor, "video")
    if queries is None:
        split = monitor.query_split if monitor.query_split in available_splits(data, "video") else data.split
        queries = unlabeled_queries(data, replace(monitor, query_split=split), "video")
    return limited(queries, _CLIPS)


def _pictures(encoder: Encoder, source: Source, example: int) -> dict[str, Image.Image]:
    """The middle frame of the clip, and its spectrogram from low to high."""
    frames, sound = encoder.transform.read(source, example)
    inputs = encoder.transform.inputs(torch.from_numpy(frames), torch.from_numpy(sound), device=torch.device("cpu"))
    bands = inputs["input_values"][0].T.flip(0)
    gray = (bands - bands.min()) / (bands.max() - bands.min()).clamp(min=1e-6)
    heard = Image.fromarray((255 * gray).round().to(torch.uint8).numpy())
    seen = Image.fromarray(np.ascontiguousarray(frames[0, frames.shape[1] // 2]))
    return {"video": _sized(seen), "audio": _sized(heard)}


def _sized(image: Image.Image) -> Image.Image:
    return image.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)


def _rows(
    found: dict[str, Features],
    asking: str,
    answering: str,
    source: Source,
    pictures: dict[int, dict[str, Image.Image]],
) -> list[list[dict[str, Any]]]:
    """Rows of a query and its nearest neighbors in the other modality: the same clip, the same class, or neither."""
    asked, answers = (F.normalize(found[f"{tower}_embeds"].vectors, dim=1) for tower in (asking, answering))
    labels, examples = found["video_embeds"].labels.tolist(), found["video_embeds"].examples.tolist()
    rows, every = [], max(1, len(examples) // _QUERIES)
    for place in range(every // 2, len(examples), every)[:_QUERIES]:
        uri = data_uri(pictures[examples[place]][asking])
        row = [{"image": uri, "title": title_of(source, examples[place]), "kind": "query", "cosine": ""}]
        cosines = answers @ asked[place]
        for near in cosines.topk(min(_FOUND, len(cosines))).indices.tolist():
            known = min(labels[place], labels[near]) >= 0
            right = near == place or (known and labels[place] == labels[near])
            row.append(
                {
                    "image": data_uri(pictures[examples[near]][answering]),
                    "title": title_of(source, examples[near]),
                    "kind": "right" if right else "wrong" if known else "",
                    "cosine": f"{cosines[near]:.2f}" + (" same" if near == place else ""),
                }
            )
        rows.append(row)
    return rows
