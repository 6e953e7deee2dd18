# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""The files of a checkpoint folder, `checkpoints/step_00001234/`, and their verification.

`model.safetensors` has the weights and all buffers of the method, `optimizer.pt` the optimizer, `rank_N.pt` the random
states and BatchNorm buffers of a process, `state.json` a `RunState`, and `digests.json` a digest of every file. Under
FSDP, `shards/` replaces the first two. Loading executes no code: tensors are read with `weights_only=True`.
"""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from .disk import DIGESTS, first_damage, first_line, read_digests


# Checkpoint format. 1: no digests, `data`, `monitor` or format number; 2: colors on a CPU computed as on a GPU.
FORMAT = 3


@dataclass
class RunState:
    """`state.json`: the state of a run, except its tensors.

    `recipe`: the whole recipe, as plain data. `totals`: counters over all restarts. `results`: measurements so far
    (`hf_ssl.hub.card.Results`). `data`: fingerprint of the training data. `stream`: position of a stream.
    `num_instances`: rows of AVID's memories. `code`: digest of a user's method file. `began`: format in which the run
    began; it decides how the recipe is interpreted.
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
        """Raise ValueError if the text is not such a state."""
        content = json.loads(text)
        known = {one.name for one in fields(cls)}
        if not isinstance(content, dict) or not isinstance(content.get("recipe"), dict):
            raise ValueError("it has no recipe")
        if not isinstance(content.get("step"), int) or not isinstance(content.get("format", 1), int):
            raise ValueError("it has no step")
        if not {"skipped", "skipped_names", "seconds", "waited"} >= content.get("totals", {}).keys() or not isinstance(
            content.get("results", {}), dict
        ):
            raise ValueError("its counters are invalid")
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
        """All complete checkpoints in a run's `checkpoints` folder, oldest first."""
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
        """File with the state of one process."""
        return self.path / f"rank_{process}.pt"

    def read_state(self) -> RunState:
        """Raises OSError, ValueError, TypeError, AttributeError or RecursionError if the file is not a valid state."""
        return RunState.from_json(self.state.read_text(encoding="utf-8"))

    def verify(self, part: int = 0, parts: int = 1) -> tuple[RunState | None, bool, str | None]:
        """Compare every `parts`-th file, starting at `part`, with its digest.

        Returns:
            The state, whether the files have digests (old versions wrote none), and the first fault.
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
