# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Shared by all conversions: renaming in both directions, and a check that every tensor is accounted for."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ...recipe import RecipeError
from ..weights import read_file, unreadable  # noqa: F401


Tensors = dict[str, torch.Tensor]
Pair = tuple[str, str]

# Checkpoint entries that may hold tensors but no weights, and a note for the list of entries that were not converted.
TRAINING = dict.fromkeys(("amp", "loss", "losses", "meters", "meta", "optimizer", "queue", "scaler", "scheduler"), "")
TRAINING["train_criterion"] = " (memories and positive sets, whose rows follow the authors' file list; Z)"


@dataclass
class Original:
    """The content of an original checkpoint.

    Args:
        tensors: tensors with our names, those of `XForPreTraining` and `classifier.{weight,bias}`.
        names: our names -> names in the file.
        left_out: entries of the file that are not converted.
        fields: configuration fields.
        facts, remainder: JSON data and tensors that only the conversion back needs.
    """

    tensors: Tensors
    names: dict[str, str]
    left_out: list[str] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    remainder: Tensors = field(default_factory=dict)


@cache
def _pattern(template: str) -> tuple[re.Pattern, list[str]]:
    parts = re.split(r"\{(.*?)\}", template)
    holes = parts[1::2]
    parts[1::2] = ["(.+)" if hole.startswith("*") else r"(0|[1-9]\d*)" for hole in holes]
    parts[::2] = map(re.escape, parts[::2])
    return re.compile("".join(parts)), holes


def rename(name: str, pairs: Iterable[Pair]) -> str | None:
    """Rename by the first matching pair (from, to); None if none matches.

    Patterns have holes: `{s}` matches an integer, `{s+1}` that integer plus one, `{*x}` any text.
    """
    for source, target in pairs:
        pattern, holes = _pattern(source)
        if match := pattern.fullmatch(name):
            values: dict[str, Any] = {}
            for hole, text in zip(holes, match.groups(), strict=True):
                key, _, shift = hole.partition("+")
                value = text if key.startswith("*") else int(text) - int(shift or 0)
                if values.setdefault(key, value) != value:
                    return None  # holes of the same name must match the same value
            for hole in _pattern(target)[1]:
                key, _, shift = hole.partition("+")
                value = values[key] if key.startswith("*") else values[key] + int(shift or 0)
                target = target.replace(f"{{{hole}}}", str(value))
            return target
    return None


@dataclass(frozen=True)
class Layout:
    """How a project names its tensors, and where in a file it stores them.

    Args:
        method: hf_ssl's method, or "" for an encoder only.
        license: license text for the card.
        mark: prefix of a name that only this layout has.
        pairs: pairs of names, theirs and ours.
        fields: (tensors with our names, content of the file) -> configuration fields.
        container: entry that holds the weights when written, if any.
        prefix: DDP's prefix; always written, optional when read.
        ignored: pattern of our names that the conversion back skips.
        padding: padding of the original network's convolutions.
        first_shortcuts: values of `first_shortcut` that the original network supports.
    """

    name: str
    method: str
    project: str
    license: str
    mark: str
    pairs: tuple[Pair, ...]
    fields: Callable[[Tensors, Any], dict[str, Any]] = lambda tensors, content: {}
    container: str = ""
    prefix: str = "module."
    ignored: str = r"classifier\..*"
    padding: str = "torch"
    first_shortcuts: tuple[str, ...] = ("identity",)

    def theirs(self, name: str) -> str | None:
        return rename(name, ((ours, theirs) for theirs, ours in self.pairs))

    def recognizes(self, content: Any) -> bool:
        return any(str(name).removeprefix("module.").startswith(self.mark) for name in weights_of(content)[0])

    def read(self, content: Any, path: Path) -> Original:
        state, place = weights_of(content)
        wrapped = all(str(name).startswith("module.") for name in state)
        found = self.ours({str(n).removeprefix("module.") if wrapped else str(n): t for n, t in state.items()})
        found.left_out = left_out(content, {place}) if place else []
        found.fields = self.fields(found.tensors, content)
        return found

    def ours(self, state: dict[str, Any]) -> Original:
        """Raises RecipeError for entries that are not tensors, are unknown, or have the same meaning."""
        wrong = [n for n, t in state.items() if not (isinstance(t, torch.Tensor) and t.layout is torch.strided)]
        if wrong:
            raise RecipeError(f"Entries of the weights that are not tensors: {listed(wrong)}.")
        names = {name: rename(name, self.pairs) for name in state}
        unknown = [name for name, ours in names.items() if ours is None]
        if unknown or len(set(names.values())) < len(names):
            raise RecipeError(f"Unexpected or duplicate tensors: {listed(unknown or names)}.")
        return Original({ours: state[n] for n, ours in names.items()}, {ours: n for n, ours in names.items()})

    def write(self, tensors: dict[str, Any], config: Any, facts: dict[str, Any]) -> Any:
        """Content of the original's file.

        Raises:
            RecipeError: the original network lacks these tensors, or would compute different features.
        """
        stem, padding = getattr(config, "stem", "imagenet"), getattr(config, "padding", self.padding)
        if stem not in ("imagenet", "wide") or padding != self.padding:
            said = (
                f"The encoder has stem={stem} and padding={padding}, but the original has imagenet and {self.padding}"
            )
            raise RecipeError(f"{said}; the weights would load, but give different features.")
        if getattr(config, "first_shortcut", "identity") not in self.first_shortcuts:
            raise RecipeError("The encoder has first_shortcut=projection, which the original network does not have.")
        names = {name: self.theirs(name) for name in tensors}
        unknown = [n for n, theirs in names.items() if theirs is None and not re.fullmatch(self.ignored, n)]
        if unknown or not any(names.values()):
            raise RecipeError(f"The original network does not have these tensors: {listed(unknown or names)}.")
        state = {self.prefix + theirs: tensors[name] for name, theirs in names.items() if theirs is not None}
        return {self.container: state} if self.container else state


def weights_of(content: Any) -> tuple[dict[str, Any], str | None]:
    """The state dict, and the key of the entry that holds it; `None` if it is the content itself."""
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            return content[key], key
    return (content if isinstance(content, dict) else {}), None


def listed(names: Iterable[str], most: int = 5) -> str:
    """The first few names, and their total number."""
    names = list(names)
    return ", ".join(names[:most]) + (f" ... ({len(names)} in all)" if len(names) > most else "")


def left_out(entries: dict[str, Any], used: set[str], where: str = "") -> list[str]:
    """Names of a checkpoint's entries, except the weights.

    Raises:
        RecipeError: an unknown entry holds tensors.
    """
    others = [str(key) for key in entries if key not in used]
    unknown = [key for key in others if key not in TRAINING and _holds_tensors(entries.get(key))]
    if unknown:
        raise RecipeError(f"Unknown entries with tensors: {listed(unknown)}.")
    return [where + key + TRAINING.get(key, "") for key in others]


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, dict | list | tuple):
        return any(map(_holds_tensors, value.values() if isinstance(value, dict) else value))
    return isinstance(value, torch.Tensor)


def account(found: Original, expected: Tensors, layout: Layout) -> None:
    """Raise RecipeError unless all tensors of the network are present with the right shape, and no others."""
    name_of = lambda name: found.names.get(name) or layout.theirs(name) or name  # noqa: E731
    alike = lambda a, b: a.shape == b.shape and a.is_floating_point() == b.is_floating_point()  # noqa: E731
    both = [name for name in found.tensors if name in expected]
    faults = {
        "missing": [name_of(n) for n in expected if n not in found.tensors],
        "not of this network": [name_of(n) for n in found.tensors if n not in expected],
        "of another shape or kind": [name_of(n) for n in both if not alike(found.tensors[n], expected[n])],
    }
    said = "; ".join(f"{kind}: {listed(names)}" for kind, names in faults.items() if names)
    if said:
        raise RecipeError(f"The tensors do not match the expected network; {said}.")


def head_widths(tensors: Tensors, head: str) -> list[int]:
    """Output widths of a head's linear layers, in order."""
    pattern = re.compile(rf"{re.escape(head)}\.(\d+)\.weight")
    layers = [(int(m[1]), t.shape[0]) for n, t in tensors.items() if (m := pattern.fullmatch(n)) and t.dim() == 2]
    return [width for _, width in sorted(layers)]
