# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""google-deepmind/deepmind-research, folder byol: a dill pickle of Haiku trees.

`read_pickle` builds a few named records, see `hf_ssl.hub.pickles`. dill writes some names as calls of its own
functions; these are read as the data that they represent.

Haiku pads strided convolutions as TensorFlow does, hence `padding="same"`. Its zero-debiased averages are BatchNorm's
running statistics, and their update counter is `num_batches_tracked`.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...recipe import RecipeError
from .. import pickles
from ..pickles import NUMPY, Refused
from .common import Layout, Original, Tensors, head_widths, left_out, unreadable


_TREES = ("online_params", "target_params", "online_state", "target_state")
_LAYER = {"w": "weight", "b": "bias"}
_NORM = {
    "scale": "weight",
    "offset": "bias",
    "~/mean_ema/average": "running_mean",
    "~/var_ema/average": "running_var",
    "~/mean_ema/counter": "num_batches_tracked",
}
_BLOCK = ("encoder/~/block_group_{s}/~/block_{b}/~/", "encoder.backbone.layer{s+1}.{b}.")
_MODULES = (
    ("encoder/~/initial_conv", "encoder.backbone.conv1", _LAYER),
    ("encoder/~/initial_batchnorm", "encoder.backbone.bn1", _NORM),
    (_BLOCK[0] + "conv_{i}", _BLOCK[1] + "conv{i+1}", _LAYER),
    (_BLOCK[0] + "batchnorm_{i}", _BLOCK[1] + "bn{i+1}", _NORM),
    (_BLOCK[0] + "shortcut_conv", _BLOCK[1] + "downsample.0", _LAYER),
    (_BLOCK[0] + "shortcut_batchnorm", _BLOCK[1] + "downsample.1", _NORM),
    *((f"{head}/linear", f"{head}.0", _LAYER) for head in ("projector", "predictor")),
    *((f"{head}/batch_norm", f"{head}.1", _NORM) for head in ("projector", "predictor")),
    *((f"{head}/linear_1", f"{head}.3", _LAYER) for head in ("projector", "predictor")),
    ("classifier", "classifier", _LAYER),
)
_NAMES = [(f"{theirs}/{a}", f"{ours}.{b}") for theirs, ours, leaves in _MODULES for a, b in leaves.items()]

# Averages before debiasing, a redundant counter, and heads that the target network does not use.
_REMAINDER = re.compile(r".*/hidden|.*/var_ema/counter|target/(predictor|classifier)/.*")

_OF_NORM = re.compile(r"bn\d\.|downsample\.1\.|(projector|predictor)\.1\.")  # our names of BatchNorm's tensors

_RECORDS = {"_ByolExperimentState", "ScaleByLarsState", "AddWeightDecayState", "ScaleState", "EmptyState"}
_MAPPINGS = {"frozendict", "FlatMap", "FlatMapping"}  # Haiku's mappings in different versions
_DATA = NUMPY | {"collections.OrderedDict": dict}
for _core in ("numpy.core", "numpy._core"):  # where dill looks for it
    _DATA[f"{_core}._multiarray_umath._reconstruct"] = np._core.multiarray._reconstruct
    _DATA[f"{_core}._multiarray_umath.scalar"] = np._core.multiarray.scalar


class _Record(tuple):
    """Stand-in for a named tuple, of which only the field order is known."""

    def __new__(cls, *fields):
        return tuple.__new__(cls, fields)


class _Mapping(dict):
    """Stand-in for an immutable dict, which keeps its content in an attribute."""

    def __setstate__(self, state: dict) -> None:
        self.update(state.get("_storage") or state.get("_mapping") or {})


class _Module(str):
    """Stand-in for a module, by name."""


def _named(module: Any, name: Any) -> Any:
    """The stand-in for `module.name`."""
    if name in _RECORDS or name in _MAPPINGS:
        return type(name, (_Record if name in _RECORDS else _Mapping,), {})
    if f"{module}.{name}" not in _DATA:
        raise Refused(f"{module}.{name}")
    return _DATA[f"{module}.{name}"]


def _dill_attribute(module: Any, name: Any) -> Any:
    if not isinstance(module, _Module):
        raise Refused(f"the attribute {name} of a {type(module).__name__}")
    return _named(module, name)


def _dill_array(function: Any, arguments: tuple, state: tuple, attributes: Any = None) -> np.ndarray:
    if function is not np._core.multiarray._reconstruct or attributes:
        raise Refused("an array built by an unexpected function")
    array = function(*arguments)
    array.__setstate__(state)
    return array


_DATA |= {
    "dill._dill._import_module": _Module,
    "dill._dill._get_attr": _dill_attribute,
    "dill._dill._create_namedtuple": lambda name, fields, module, defaults=None: _named(module, name),
    "dill._dill._create_array": _dill_array,
}


def read_pickle(path: Path) -> Any:
    """Read the content of the pickle.

    Raises:
        RecipeError: the file is missing, truncated, or needs more than such a checkpoint does.
    """
    try:
        return pickles.read_pickle(path, "checkpoint of BYOL", _named)
    except RecipeError:
        raise
    except Exception as error:  # broken or hostile files may raise anything
        raise unreadable(path, error) from error


class Byol(Layout):
    def recognizes(self, content: Any) -> bool:
        return isinstance(content, dict) and "experiment_state" in content

    def read(self, content: Any, path: Path) -> Original:
        state = content["experiment_state"]
        trees = dict(zip((*_TREES, "opt_state"), state, strict=False)) if isinstance(state, tuple) else state
        flat = _flatten(trees)
        remainder = {name: tensor for name, tensor in flat.items() if _REMAINDER.fullmatch(name)}
        found = self.ours({name: tensor for name, tensor in flat.items() if name not in remainder})
        found.tensors = {name: _to_torch(name, tensor) for name, tensor in found.tensors.items()}
        found.remainder, found.fields = remainder, self.fields(found.tensors, content)
        found.left_out = left_out(content, {"experiment_state"}) + [name for name in trees if name not in _TREES]
        return found

    def write(self, tensors: dict[str, Any], config: Any, facts: dict[str, Any]) -> Any:
        """The four trees as dicts; `experiment_state` is a dict, where the authors have a named tuple."""
        tensors = {name: _to_haiku(name, tensor) for name, tensor in tensors.items()}
        network = f"res_net{re.sub('[^0-9]', '', config.backbone)}/"
        trees: dict[str, dict] = {tree: {} for tree in _TREES}
        for name, tensor in (super().write(tensors, config, facts) | facts["remainder"]).items():
            which, _, path = name.partition("/")
            module, _, leaf = path.rpartition("/")
            tree = trees[f"{which}_{'state' if '_ema' in module else 'params'}"]
            tree.setdefault(re.sub("^encoder/", network, module), {})[leaf] = tensor.numpy()
        return {"experiment_state": trees}


def _flatten(trees: Any) -> Tensors:
    """Flatten to names like `online/encoder/~/initial_conv/w`; parameters and statistics never share a name."""
    flat: Tensors = {}
    for tree in _TREES:
        if not isinstance(trees, dict) or not isinstance(trees.get(tree), dict):
            raise RecipeError(f"The checkpoint has no {tree}.")
        for module, leaves in trees[tree].items():
            for leaf, array in leaves.items() if isinstance(leaves, dict) else [("", leaves)]:
                name = f"{tree.split('_')[0]}/{re.sub('^res_net[0-9]+/', 'encoder/', str(module))}/{leaf}"
                if str(getattr(array, "dtype", "")) not in ("float32", "int32") or name in flat:
                    raise RecipeError(f"{tree}, {module}/{leaf} is not a numeric array, or is duplicated.")
                flat[name] = torch.from_numpy(np.array(array, order="C"))
    return flat


def _to_torch(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """HWIO -> OIHW, (in, out) -> (out, in), (1, 1, 1, C) and (1, C) -> (C), counters to int64."""
    if name.endswith("num_batches_tracked"):
        return tensor.long()
    if _OF_NORM.search(name):
        return tensor.reshape(-1)
    axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(tensor.dim())
    return tensor.permute(axes).contiguous() if axes else tensor


def _to_haiku(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if name.endswith("num_batches_tracked"):
        return tensor.int()
    if tensor.dim() == 1:
        shape = (1, 1, 1, -1) if "encoder." in name else (1, -1)
        return tensor.reshape(shape) if _OF_NORM.search(name) else tensor
    return (tensor.permute(2, 3, 1, 0) if tensor.dim() == 4 else tensor.T).contiguous()


def _fields(tensors: Tensors, content: Any) -> dict[str, Any]:
    projector, predictor = head_widths(tensors, "projector"), head_widths(tensors, "predictor")
    fields = {"padding": "same", "interpolation": "bicubic"}
    first = "encoder.backbone.layer1.0."
    if first + "downsample.0.weight" in tensors and first + "conv3.weight" not in tensors:
        fields["first_shortcut"] = "projection"
    if projector and predictor:
        fields |= {"projector_hidden": projector[0], "projector_dim": projector[-1], "predictor_hidden": predictor[0]}
        fields |= {"hidden_bias": "projector.0.bias" in tensors, "output_bias": "projector.3.bias" in tensors}
    return fields


byol = Byol(
    "byol",
    "byol",
    "https://github.com/google-deepmind/deepmind-research/tree/master/byol",
    "The project's code is under Apache-2.0, its weights are under CC BY-NC 4.0.",
    mark="",
    pairs=(
        *((f"online/{theirs}", ours) for theirs, ours in _NAMES),
        *((f"target/{theirs}", f"target_{ours}") for theirs, ours in _NAMES),
    ),
    fields=_fields,
    prefix="",
    padding="same",
    first_shortcuts=("identity", "projection"),
)
