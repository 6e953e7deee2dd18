# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Figures of results, and tables of them for a terminal."""

import json
from typing import Any


# Entries of a result that are not figures.
_ABOUT = {"failed", "measured", "examples", "bank", "queries", "errors", "spread", "chosen", "baselines", "protocol"}
_ABOUT |= {"classes", "settings", "said", "model", "data", "name", "command", "hardware", "versions", "layer", "place"}


def figures(result: dict[str, Any]) -> dict[str, float]:
    """The figures of a result, by name."""
    return {key: value for key, value in result.items() if key not in _ABOUT}


def to_json(result: dict[str, Any]) -> str:
    return json.dumps(result, indent=2)


def table(results: dict[str, dict[str, Any]]) -> str:
    """Table of one protocol's figures, with a column per model and baseline.

    Args:
        results: results by model name.
    """
    columns: dict[str, dict[str, Any]] = {}
    for name, result in results.items():
        columns[name] = result
        for baseline, found in result.get("baselines", {}).items():
            other = figures(columns.get(baseline, found)) != figures(found)
            columns[f"{baseline} ({name})" if other else baseline] = found
    rows = list(dict.fromkeys(key for column in columns.values() for key in figures(column)))
    shown = [["", *columns]]
    for key in rows:
        shown.append([key, *(cell(column, key) or "-" for column in columns.values())])
    widths = [max(len(row[i]) for row in shown) for i in range(len(shown[0]))]
    lines = []
    for first, *others in shown:
        cells = [one.rjust(width) for one, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


def cell(result: dict[str, Any], key: str, places: int = 2) -> str:
    """A figure with its standard error; "" if missing."""
    if key not in figures(result):
        return ""
    if key.endswith("rank"):
        return f"{result[key]:.1f}"
    error = result.get("errors", {}).get(key)
    return f"{result[key]:.{places}%}" + (f" ±{100 * error:.{places}f}" if error is not None else "")
