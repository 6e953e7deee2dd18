# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Facts about all files, as plain data and as text."""

import math
import statistics
from array import array
from collections import Counter
from collections.abc import Iterator
from typing import Any

from .facts import Facts


_SHOWN = 5  # names shown per list; the JSON has all
_CLASSES = 10
_BAR = 40  # characters of the longest bar


class Findings:
    """Accumulated facts."""

    def __init__(self) -> None:
        self.read, self.cost = 0, 0.0
        self.broken: dict[str, str] = {}
        self.kinds: dict[str, Counter] = {}
        self.sides, self.seconds = array("d"), array("d")
        self._first: dict[int, tuple[str, str]] = {}  # content -> split and name
        self._copies: dict[str, list[str]] = {}
        self._shared: set[int] = set()

    def add(self, split: str, name: str, facts: Facts) -> None:
        self.read, self.cost = self.read + 1, self.cost + facts.cost
        if facts.broken is not None:
            self.broken[name] = facts.broken
            return
        for about, value in facts.kinds.items():
            self.kinds.setdefault(about, Counter())[value] += 1
        if facts.side is not None:
            self.sides.append(facts.side)
        if facts.seconds is not None:
            self.seconds.append(facts.seconds)
        if facts.content is not None:
            before, first = self._first.setdefault(facts.content, (split, name))
            if first != name:
                self._copies.setdefault(first, []).append(name)
                self._shared |= {facts.content} if before != split else set()

    def told(self) -> dict[str, Any]:
        """Plain data.

        Returns:
            `read`, `broken` (name -> reason), `kinds` (property -> value -> files), `sides` and `seconds_long`
            (`smallest`, `median`, `largest`, `histogram`: lower and upper end and files), `duplicates` (groups of
            names with the same content), `in_several_splits` (contents), and `seconds_per_1000` of one process.
        """
        kinds = {about: dict(counted.most_common()) for about, counted in self.kinds.items()}
        return {
            "read": self.read,
            "broken": self.broken,
            "kinds": kinds,
            "sides": _spread(self.sides),
            "seconds_long": _spread(self.seconds),
            "duplicates": [[first, *copies] for first, copies in self._copies.items()],
            "in_several_splits": len(self._shared),
            "seconds_per_1000": round(1000 * self.cost / self.read, 2) if self.read else None,
        }


def _spread(values: array) -> dict[str, Any] | None:
    """Histogram over powers of two."""
    if not values:
        return None
    counted = Counter(math.floor(math.log2(value)) for value in values if value > 0)
    bins = range(min(counted), max(counted) + 1) if counted else ()
    histogram = [[2.0**power, 2.0 ** (power + 1), counted[power]] for power in bins]
    ends = {"smallest": min(values), "median": statistics.median(values), "largest": max(values)}
    return {**ends, "histogram": histogram}


def text(told: dict[str, Any]) -> str:
    """Format the result of `survey` for a terminal."""
    return "\n".join(_lines(told))


def _lines(told: dict[str, Any]) -> Iterator[str]:
    kind = told["kind"]
    yield f"{told['path']}: {kind}s"
    for split, part in told["splits"].items():
        count = "an unknown number of" if part["examples"] is None else f"{part['examples']:,}"
        partly = f" ({part['read']:,} read)" if part["read"] != part["examples"] else ""
        yield f"  {split}: {count} {kind}s{partly}{_of_classes(part['classes'])}"
    for about, counted in told["kinds"].items():
        yield f"{about}: {_counted(counted)}"
    for key, title, unit in (("sides", "Shorter side", "pixels"), ("seconds_long", "Length", "seconds")):
        if told[key]:
            yield from _histogram(told[key], title, unit)
    copies = sum(len(group) - 1 for group in told["duplicates"])
    if copies:
        between = f", {told['in_several_splits']:,} of them in several splits" * bool(told["in_several_splits"])
        yield f"{copies:,} file(s) duplicate another one{between}:"
        yield from _named([" = ".join(group) for group in told["duplicates"]])
    if told["broken"]:
        yield f"{len(told['broken']):,} file(s) cannot be read and are skipped:"
        yield from _named([f"{name}: {reason}" for name, reason in told["broken"].items()])
    if told["ignored"]:
        yield f"{len(told['ignored']):,} other file(s) are not used:"
        yield from _named(told["ignored"])
    if told["read"]:
        yield f"Reading and decoding 1,000 whole files takes {told['seconds_per_1000']:.3g} s in one process."
    for reason in told["refused"]:
        yield f"Training would stop: {reason}"


def _of_classes(classes: dict[str, int]) -> str:
    return f"; {len(classes):,} classes: {_counted(classes, _CLASSES)}" if classes else ""


def _counted(counted: dict[str, int], most: int = 20) -> str:
    shown = ", ".join(f"{name} {count:,}" for name, count in list(counted.items())[:most])
    return shown + (f" and {len(counted) - most:,} more" if len(counted) > most else "")


def _histogram(spread: dict[str, Any], title: str, unit: str) -> Iterator[str]:
    smallest, median, largest = (f"{spread[key]:,.4g}" for key in ("smallest", "median", "largest"))
    yield f"{title} in {unit}: {smallest} to {largest}, median {median}"
    most = max(count for *_, count in spread["histogram"]) if spread["histogram"] else 0
    for low, high, count in spread["histogram"]:
        yield f"  {low:>8g} to {high:<8g} {'#' * math.ceil(_BAR * count / most):{_BAR}} {count:,}"


def _named(names: list[str]) -> Iterator[str]:
    yield from (f"  {name}" for name in names[:_SHOWN])
    if len(names) > _SHOWN:
        yield f"  and {len(names) - _SHOWN:,} more; --json lists all"
