# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Code that loads an exported folder, for the terminal: the card's code with the folder's path."""

import re
from pathlib import Path

from ..data.modality import Modality


def loading_lines(modality: Modality, folder: Path, plain: bool) -> list[str]:
    """Lines of Python that load the folder.

    Args:
        plain: whether timm can build the encoder by name.
    """
    half = modality.half(__package__)
    sharded = (folder / "model.safetensors.index.json").exists()
    code = re.search(r"```python\n(.*?)```", half.usage(plain, sharded), flags=re.DOTALL)
    assert code is not None
    lines = code[1].replace("hf-hub:REPO", f"local-dir:{folder}").replace("REPO", str(folder)).splitlines()
    lines = [re.sub(r" {2,}#", "  #", line) for line in lines if line]
    return half.with_processor(lines, str(folder))
