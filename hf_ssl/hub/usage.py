# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""The lines that load an exported folder, for a terminal: those of its card, with the folder's own name."""

import re
from pathlib import Path

from ..data.modality import Modality


def loading_lines(modality: Modality, folder: Path, plain: bool) -> list[str]:
    """Python that runs as it stands where the folder is reached by its name.

    Args:
        plain: the encoder is one that timm builds by its name.
    """
    half = modality.half(__package__)
    sharded = (folder / "model.safetensors.index.json").exists()
    code = re.search(r"```python\n(.*?)```", half.usage(plain, sharded), flags=re.DOTALL)
    assert code is not None
    lines = code[1].replace("hf-hub:REPO", f"local-dir:{folder}").replace("REPO", str(folder)).splitlines()
    lines = [re.sub(r" {2,}#", "  #", line) for line in lines if line]
    return half.with_processor(lines, str(folder))
