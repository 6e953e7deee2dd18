# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""`hf-ssl report`: a run's results as one HTML page that needs no network."""

import json
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment
from PIL import Image

from ..disk import atomic_write, first_line
from ..errors import UserError
from ..evaluation.encoders import open_model
from ..preview import preview
from ..recipe import DataConfig
from .curves import COLORS, training_curves
from .pictures import SIDE, Sheet, data_uri
from .run_files import RunFiles, differences, facts, read_run, verdict


logger = logging.getLogger(__name__)

_VIEWED = 3  # number of images whose views are shown


def report(
    runs: Sequence[str | Path],
    data: DataConfig | None = None,
    output: str | Path | None = None,
    *,
    pictures: bool = True,
) -> Path:
    """Write `report.html`: a verdict, curves and, for each run with a model, images of what it distinguishes.

    Args:
        runs: folders of runs; for several, recipes are compared and curves share axes.
        data: labeled images or clips to show; default: the run's evaluation data, else its training data.
        output: default: `report.html` in the first run's folder.
        pictures: load the models for their images; models with billions of parameters need that much memory.

    Returns:
        The page's absolute path.

    Raises:
        UserError: a folder is not a run, or the page cannot be written.
    """
    found = [read_run(run) for run in runs]
    path = Path(output) if output is not None else found[0].folder / "report.html"
    sheet = Sheet()
    page = _render(found, [_sections(run, data, sheet, pictures) for run in found], sheet)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, page)
    except OSError as error:
        raise UserError(f"The report could not be written to {path} ({error}); choose another --output.") from error
    return path.resolve()


def _sections(run: RunFiles, data: DataConfig | None, sheet: Sheet, pictures: bool) -> dict[str, Any]:
    """All sections of one run; sections that cannot be shown are replaced by the reason."""
    word, sentence = verdict(run)
    about: dict[str, Any] = {
        "name": run.name,
        "folder": str(run.folder),
        "word": word,
        "verdict": sentence,
        "facts": facts(run),
        "recipe": run.recipe.to_yaml(),
        "skipped": run.skipped,
        "skipped_names": run.skipped_names,
        "views": None,
        "views_problem": "",
    }
    try:
        about["views"] = _views(run)
    except Exception as error:  # the data may have moved; still write the rest of the page
        about["views_problem"] = first_line(error)
    if run.model is None:
        said = f"The run has not ended, so there are no images yet; hf-ssl export {run.folder} makes a model of it."
        return about | {"problem": said}
    if not pictures:
        return about | {"problem": f"hf-ssl report {run.folder} draws pictures, too."}
    try:
        encoder = open_model(str(run.folder))
        where = run.recipe.data if data is None else data
        monitor = run.recipe.monitor if data is None else replace(run.recipe.monitor, path=None, name=None)
        half = encoder.modality.half(__name__)
        return about | half.sections(encoder, where, monitor, sheet)
    except Exception as error:
        logger.warning(f"No images for {run.folder}: {first_line(error)}")
        return about | {"problem": f"No pictures: {first_line(error)}"}


def _views(run: RunFiles) -> str:
    """The views that the network saw, as in `hf-ssl preview`."""
    with tempfile.TemporaryDirectory() as folder:
        file = preview(run.recipe, _VIEWED, Path(folder) / "views.png")
        with Image.open(file) as image:
            return data_uri(image, 75)


def _render(runs: list[RunFiles], sections: list[dict[str, Any]], sheet: Sheet) -> str:
    room = files(__package__)
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        (room / "page.html").read_text(encoding="utf-8")
    )
    maps = [{"points": one.pop("map", []), "classes": one.get("classes", [])} for one in sections]
    return template.render(
        title=" and ".join(run.name for run in runs),
        runs=list(zip(sections, COLORS, strict=False)),
        differences=differences(runs) if len(runs) > 1 else [],
        curves=training_curves(runs),
        style=(room / "page.css").read_text(encoding="utf-8"),
        script=(room / "map.js").read_text(encoding="utf-8"),
        maps=json.dumps(maps).replace("<", "\\u003c"),  # file names must not end the script
        sheet=sheet.uri(),
        side=SIDE,
    )
