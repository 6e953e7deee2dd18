# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Summary printed at the end of a run."""

from collections.abc import Iterator
from typing import Any


def closing(result: Any, k: int, start: str) -> Iterator[str]:
    """Yield the lines of the summary of a `PretrainResult`.

    Args:
        k: neighbors of kNN.
        start: state of the network before training, "untrained" or "pretrained".
    """
    yield from _measured(result, k, start)
    if result.summary:
        yield from _spent(result.summary)
    folder = result.model_dir.parent
    yield ""
    yield f"Curves: {folder / 'metrics.jsonl'}"
    if (folder / "report.html").is_file():
        yield f"Report: {folder / 'report.html'}"
    if (folder / "trackio").is_dir():  # trackio's own message leaves the folder out
        yield f"Trackio: TRACKIO_DIR={folder / 'trackio'} trackio show --project hf_ssl"
    yield f"Card:   {result.model_dir / 'README.md'}"
    yield f"Model:  {result.model_dir}. Load the encoder with"
    yield from (f"  {line}" for line in result.usage)


def _measured(result: Any, k: int, start: str) -> Iterator[str]:
    if "knn" in result.final and "knn" in result.baseline:
        yield f"\nkNN accuracy (k={k})"
        if result.measured:  # missing for models of earlier versions
            yield f"  on {result.measured['num_queries']:,} images: {result.measured['queries']}"
        yield f"  raw pixels        {result.baseline['knn_raw_pixels']:6.1%}"
        yield f"  {f'{start} network':18}{result.baseline['knn']:6.1%}"
        yield f"  trained network   {result.final['knn']:6.1%}"
        if "probe" in result.final:
            yield f"Linear probe, trained online\n  trained network   {result.final['probe']:6.1%}"
    elif "video_to_audio_r1" in result.final:
        from ..hub.card import ROWS

        yield f"\n{'':47}{start:>10}  trained"
        for key, label, form in ROWS:
            if key.startswith(("knn_", "video_", "audio_", "positive_")) and key in result.final:
                before = form.format(result.baseline[key]) if key in result.baseline else ""
                yield f"  {label:46}{before:>9}{form.format(result.final[key]):>9}"
    else:
        yield "\nkNN accuracy was not measured (no labels, or monitor.every=0). With labeled images:"
        yield f"  hf-ssl evaluate knn {result.model_dir.parent} --data LABELED"


def _spent(summary: dict[str, Any]) -> Iterator[str]:
    kind = summary["counted"]
    used = "an unknown number of" if summary["examples"] is None else f"{summary['examples']:,}"
    yield f"\nTrained on {used} {kind}; {_skipped(summary)}"
    speed = f"{summary['per_second']:,.0f} {kind}/s, {summary['data_wait']:.0%} of the time waiting for data"
    memory = f"; peak memory {summary['peak_memory_gib']:.2f} GiB" if summary["peak_memory_gib"] is not None else ""
    yield f"{_time(summary['seconds'])} of training steps, {speed}{memory}"


def _skipped(summary: dict[str, Any]) -> str:
    said = "all files could be read"
    if summary["skipped_files"]:
        said = f"{summary['skipped_files']:,} file(s) could not be read, {summary['skipped']:,} times in all"
    return said + (f"; {summary['ignored']:,} other file(s) were ignored" if summary["ignored"] else "")


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
