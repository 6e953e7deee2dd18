# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Run mteb's image tasks and save the scores in the model's folder, in the Hub's format.

mteb runs the tasks; hf_ssl only provides the encoder, with its own preprocessing and pooled features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

from ..data.pixels import DEFAULT, Decoding
from ..devices import process_state
from ..disk import atomic_write, first_line
from ..errors import RecipeError, UserError
from .encoders import Encoder, open_model


_URL = "https://github.com/embeddings-benchmark/mteb/"


@dataclass(frozen=True)
class _OneImage:
    """An image opened by mteb, as a `Source` of length one."""

    image: Any
    max_megapixels: float = float("inf")
    decoding: Decoding = DEFAULT

    def record(self, index: int) -> dict[str, Any]:
        return {"bytes": None, "path": None, "image": self.image}


class ImageEncoder:
    """A frozen encoder with mteb's interface."""

    def __init__(self, encoder: Encoder, meta: Any):
        self.encoder, self.mteb_model_meta = encoder.to(process_state().device), meta

    @torch.no_grad()
    def encode(self, inputs: Any, **kwargs: Any) -> torch.Tensor:
        """Pooled features (N, D) of a loader's images; `kwargs` describe the task and are ignored."""
        parts, transform, device = [], self.encoder.transform, process_state().device
        for batch in inputs:
            if "image" not in batch or "text" in batch:
                raise ValueError("an image encoder only accepts images")
            read: Any = transform.read
            made = zip(*(read(_OneImage(image), 0) for image in batch["image"]), strict=True)
            arrays = [torch.from_numpy(np.concatenate(part)) for part in made]
            parts.append(self.encoder.embed(transform.inputs(*arrays, device=device))[""].float().cpu())
        return torch.cat(parts)

    def similarity(self, first: Any, second: Any) -> torch.Tensor:
        """Cosines (N, M)."""
        return _unit(first) @ _unit(second).T

    def similarity_pairwise(self, first: Any, second: Any) -> torch.Tensor:
        """Cosines (N,)."""
        return (_unit(first) * _unit(second)).sum(-1)


def run_mteb(
    model: str, tasks: Sequence[Any], *, folder: Path | None = None, layer: str | None = None, batch_size: int = 64
) -> dict[str, float]:
    """Run mteb tasks, and write `.eval_results/TASK.yaml` and mteb's own `results/mteb/TASK.json` for each.

    Args:
        model, layer: see `open_model`.
        tasks: names, or mteb task objects.
        folder: default: the model's.

    Returns:
        Main score (0..1) by task.

    Raises:
        RecipeError: mteb is not installed, has no such task, or the encoder or the data do not fit it.
        UserError: the results cannot be written.
    """
    try:
        mteb: Any = import_module("mteb")
    except ImportError as error:
        raise RecipeError('mteb is not installed; pip install -e ".[mteb]".') from error
    if process_state().num_processes > 1:
        raise RecipeError("hf-ssl evaluate mteb runs in a single process; start it without a launcher.")
    encoder = open_model(model, layer=layer)
    if encoder.modality.towers != ("",):
        raise RecipeError(f"{model} is not an image encoder, which mteb's image tasks need.")
    place = folder or encoder.folder
    if place is None:
        raise RecipeError(f"{model} is not a local folder for the results; set --output.")
    try:
        found = [mteb.get_task(task) if isinstance(task, str) else task for task in tasks]
    except KeyError as error:
        raise RecipeError(f"mteb has no such task: {first_line(error)}") from error
    for task in found:
        if other := set(task.metadata.modalities) - {"image"}:
            raise RecipeError(f"The task {task.metadata.name} needs {', '.join(sorted(other))}; choose an image task.")
    about = {"name": f"hf_ssl/{Path(model).name}", "revision": encoder.digest, "modalities": ["image"]}
    wrapped = ImageEncoder(encoder, import_module("mteb.models").ModelMeta.create_empty(about))
    scores = {}
    for task in found:
        name = task.metadata.name
        try:
            more = {"cache": None, "co2_tracker": False, "encode_kwargs": {"batch_size": batch_size}}
            [result] = mteb.evaluate(wrapped, task, show_progress_bar=False, **more).task_results
        except Exception as error:  # mteb, its data and the network may raise anything
            raise RecipeError(f"mteb could not run {name}: {first_line(error)}") from error
        entries = entries_of(result, task.metadata)
        scores[name] = entries[-1].value / 100
        _write(place, name, result, entries)
    return scores


def entries_of(result: Any, metadata: Any) -> list[EvalResultEntry]:
    """One entry per split and subset of a `TaskResult`, in percent, with mteb's names; the last one is the mean."""
    note = f"Obtained using MTEB v{result.mteb_version}"
    about = {"dataset_revision": metadata.dataset["revision"], "source_url": _URL, "source_name": note, "notes": note}
    if result.date is not None:
        about["date"] = result.date.isoformat()
    parts = {
        f"{metadata.name}_{subset['hf_subset']}_{split}": 100 * subset["main_score"]
        for split, subsets in result.scores.items()
        for subset in subsets
    }
    parts[metadata.name] = sum(parts.values()) / len(parts)
    where = metadata.dataset["path"]
    return [EvalResultEntry(where, task_id=key, value=round(value, 5), **about) for key, value in parts.items()]


def _write(folder: Path, name: str, result: Any, entries: list[EvalResultEntry]) -> None:
    try:
        for part in (".eval_results", "results/mteb"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        result.to_disk(folder / "results" / "mteb" / f"{name}.json")
        text = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False)
        atomic_write(folder / ".eval_results" / f"{name}.yaml", text)
    except OSError as error:
        raise UserError(f"The results could not be written to {folder} ({error}); choose another --output.") from error


def _unit(vectors: Any) -> torch.Tensor:
    return F.normalize(torch.atleast_2d(torch.as_tensor(vectors)).float(), dim=-1)
