# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""The folder of a checkpoint, `checkpoints/step_00001234/`: which files are in it, and whether they are whole.

`model.safetensors` has the weights and every buffer that the method remembers, `optimizer.pt` the optimizer,
`rank_N.pt` a process's random states and BatchNorm buffers, `state.json` a `RunState`, and `digests.json` a digest of
each of them. Under FSDP, `shards/` stands for the first two. Nothing in it is executed: tensors are read with
`weights_only=True`.
"""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from .disk import DIGESTS, first_damage, first_line, read_digests


# Of a checkpoint. 1: without digests, `data`, `monitor` and the format's number; 2: colors on a CPU as on a GPU.
FORMAT = 3


@dataclass
class RunState:
    """`state.json`: what a run knows beside its tensors.

    `recipe`: all of it, as plain data. `totals`: counters over all restarts. `results`: measurements so far, see
    `hf_ssl.hub.card.Results`. `data`: the fingerprint of what is trained on. `stream`: where a stream stands.
    `num_instances`: rows of AVID's memories. `code`: digest of the file of a method that is not hf_ssl's. `began`: the
    format in which the run began, whose meaning of the recipe it keeps.
    """

    step: int
    recipe: dict[str, Any]
    totals: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] | None = None
    stream: dict[str, Any] | None = None
    num_instances: int | None = None
    code: str | None = None
    format: int = FORMAT
    began: int = FORMAT

    def to_json(self) -> str:
        return json.dumps({key: value for key, value in asdict(self).items() if value is not None}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "RunState":
        """Raises ValueError for what is no such state."""
        content = json.loads(text)
        known = {one.name for one in fields(cls)}
        if not isinstance(content, dict) or not isinstance(content.get("recipe"), dict):
            raise ValueError("it holds no recipe")
        if not isinstance(content.get("step"), int) or not isinstance(content.get("format", 1), int):
            raise ValueError("it holds no step")
        if not {"skipped", "skipped_names", "seconds", "waited"} >= content.get("totals", {}).keys() or not isinstance(
            content.get("results", {}), dict
        ):
            raise ValueError("it holds other counters")
        content = {"format": 1} | content
        values: dict[str, Any] = {"began": content["format"]} | content
        return cls(**{key: value for key, value in values.items() if key in known})


@dataclass(frozen=True)
class CheckpointFolder:
    """The files of one checkpoint."""

    PATTERN: ClassVar[str] = "step_" + "[0-9]" * 8
    path: Path

    @classmethod
    def of_step(cls, checkpoints: Path, step: int) -> "CheckpointFolder":
        return cls(checkpoints / f"step_{step:08d}")

    @classmethod
    def complete(cls, checkpoints: Path) -> list[Path]:
        """The checkpoints of a run's folder of them, oldest first."""
        return sorted(checkpoints.glob(cls.PATTERN))

    @property
    def step(self) -> int:
        return int(self.path.name.removeprefix("step_"))

    @property
    def state(self) -> Path:
        return self.path / "state.json"

    @property
    def weights(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def optimizer(self) -> Path:
        return self.path / "optimizer.pt"

    @property
    def shards(self) -> Path:
        return self.path / "shards"

    def rank(self, process: int) -> Path:
        """What a process remembers for itself."""
        return self.path / f"rank_{process}.pt"

    def read_state(self) -> RunState:
        """Raises OSError, ValueError, TypeError, AttributeError or RecursionError for what is no such state."""
        return RunState.from_json(self.state.read_text(encoding="utf-8"))

    def verify(self, part: int = 0, parts: int = 1) -> tuple[RunState | None, bool, str | None]:
        """Compare every `parts`-th file from `part` on with its digest.

        Returns:
            The state, whether digests vouch for the files (those of an old version have none), and what is wrong.
        """
        state = digests = fault = None
        try:
            digests = read_digests(self.path)
            fault = first_damage(self.path, dict(sorted((digests or {}).items())[part::parts]))
        except ValueError as error:
            fault = str(error)
        try:
            state = self.read_state()
            if digests is None and state.format > 1:
                fault = fault or f"{DIGESTS} is missing"
            elif digests is not None and self.state.name not in digests:
                fault = fault or f"{DIGESTS} does not name {self.state.name}"
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            fault = fault or f"{self.state.name} cannot be read ({first_line(error)})"
        return state, digests is not None, fault
