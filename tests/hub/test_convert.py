# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Convert originals to our format and back: all names and bytes, features, and damaged or hostile files."""

import codecs
import gzip
import json
import os
import pickle
import re
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from huggingface_hub import ModelCard
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForImageClassification, AutoModelForPreTraining

from hf_ssl.cli import main
from hf_ssl.errors import UserError
from hf_ssl.hub.convert import convert, convert_back
from hf_ssl.hub.convert.byol import read_pickle
from hf_ssl.hub.export import write_repo
from hf_ssl.models import ByolConfig, ByolForPreTraining, SwavConfig, SwavForPreTraining
from hf_ssl.models.feature_extraction_avid import AvidFeatureExtractor
from hf_ssl.recipe import RecipeError
from tests.fixtures.make_byol_dill import trees


FIXTURES = Path(__file__).parents[1] / "fixtures"

_ByolExperimentState = namedtuple(
    "_ByolExperimentState", "online_params target_params online_state target_state opt_state"
)
ScaleByLarsState = namedtuple("ScaleByLarsState", "mu")
AddWeightDecayState = namedtuple("AddWeightDecayState", "")


def keys(name: str, section: str = "keys") -> list:
    return json.loads((FIXTURES / f"keys_{name}.json").read_text())[section]


def filled(rows, seed: int = 0, small: dict[int, int] | None = None) -> dict[str, torch.Tensor]:
    """Random tensors with these names and shapes; `small` replaces widths."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, shape, *kind in rows:
        shape = [(small or {}).get(n, n) for n in shape]
        if kind == ["int64"] or name.endswith("num_batches_tracked"):
            made[name] = torch.randint(1, 10**6, shape, generator=generator)
        elif kind == ["int32"]:
            made[name] = torch.randint(0, 50, shape, generator=generator, dtype=torch.int32)
        else:
            made[name] = torch.randn(shape, generator=generator) * (0.5 / max(1, np.prod(shape[1:]))) ** 0.5
            if name.endswith(("running_var", "var_ema/average")) or re.search(r"(bn\d|norm.*scale)", name):
                made[name] = made[name].abs() + 0.5
    return made


def narrow(module: str, shape: list[int]) -> list[int]:
    """Halve a Haiku ResNet's width, except for the stem and the first block's input."""
    if "/~/initial_" in module:
        return shape
    if module.endswith("group_0/~/block_0/~/conv_0"):
        return [1, 1, 64, 32]
    kept = {1000, 4096} | ({64} if module.endswith("group_0/~/block_0/~/shortcut_conv") else set())
    return [n // 2 if n >= 64 and n not in kept else n for n in shape]


def haiku(seed: int, published: bool = False):
    """Trees of parameters and statistics; unless `published`, half as wide after the first convolution."""
    trees = []
    for section in ("params", "state"):
        rows = [[f"{m}/{n}", s if published else narrow(m, s)] for m, n, s in keys("byol_resnet50", section)]
        tree: dict = {}
        for path, tensor in filled(rows, seed, {} if published else {4096: 64}).items():
            module, _, name = path.rpartition("/")
            array = np.asarray(12345, np.int32) if name == "counter" else tensor.numpy()
            tree.setdefault(module, {})[name] = array
        trees.append(tree)
    return trees


def byol_content(published: bool = False) -> dict:
    (online, online_state), (target, target_state) = haiku(1, published), haiku(2, published)
    optimizer = [AddWeightDecayState(), ScaleByLarsState({"projector/linear": {"w": np.ones((2, 3), np.float32)}})]
    state = _ByolExperimentState(online, target, online_state, target_state, optimizer)
    return {"experiment_state": state, "step": np.int64(7), "rng": np.zeros(2, np.uint32)}


def vissl(trunk: dict, heads: dict, **more) -> dict:
    model = {"base_model": {"model": {"trunk": trunk, "heads": heads}, "meta": {}}, "optimizer": {"x": torch.ones(2)}}
    return {"classy_state_dict": model, "iteration": 3, "loss": {"queue": torch.zeros(2)}, **more}


def vissl_tensors(column: int) -> tuple[dict, dict]:
    trunk = filled([[row[0], row[3]] for row in keys("vissl_regnet")])
    names = {row[0]: row[column] for row in keys("vissl_regnet")}
    widths = {0: (64, 368), 2: (64, 64), 4: (16, 64)}
    rows = [(f"0.projection_head.{j}.weight", shape) for j, shape in widths.items()]
    rows += [(f"0.projection_head.{j}.bias", shape[:1]) for j, shape in widths.items()]
    heads = filled([*rows, ("0.prototypes0.weight", (40, 16))])
    assert set(heads) == set(keys("vissl_regnet", "head_keys_example"))
    return {names[name]: tensor for name, tensor in trunk.items()}, heads


def wide_rows() -> list:
    """The layout of w2 at a quarter of the width: the first convolution is as wide as the rest."""
    rows = []
    for name, shape, kind in keys("swav_resnet50"):
        backbone = not name.startswith(("module.projection_head", "module.prototypes"))
        rows.append((name, [n // 4 if backbone and n >= 64 else n for n in shape], kind))
    small = {"module.projection_head.0.weight": [2048, 512]}
    return [(name, small.get(name, shape), kind) for name, shape, kind in rows]


def swav_training() -> dict:
    groups = [{"lr": np.float64(0.1) * np.ones(1)[0], "momentum": 0.9}]
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": groups}
    return {"epoch": 3, "state_dict": filled(keys("swav_resnet50")), "optimizer": optimizer, "amp": {"s": 1}}


def avid(criterion: str) -> dict:
    rows = keys("avid_cma", f"train_criterion_{criterion}")
    return {"epoch": 1, "model": filled(keys("avid_cma", "model")), "optimizer": {}, "train_criterion": filled(rows)}


def avid_depth_10() -> dict:
    """The authors' network with one block per stage, whose names have no block numbers."""
    content = avid("avid")
    model = {name: t for name, t in content["model"].items() if not re.search(r"conv\dx\.1\.", name)}
    return content | {"model": {re.sub(r"(conv\dx)\.0\.", r"\1.", name): t for name, t in model.items()}}


def several_prototypes() -> dict:
    content = filled(wide_rows())
    del content["module.prototypes.weight"]
    rows = [(f"module.prototypes.prototypes{i}.weight", (count, 128)) for i, count in enumerate((30, 20, 30))]
    return content | filled(rows)


def vissl_several_prototypes() -> dict:
    trunk, heads = vissl_tensors(0)
    return vissl(trunk, heads | filled([("0.prototypes1.weight", (25, 16))]))


CASES = {  # content, --method, --to, entries of the content that are restored
    "swav": (swav_training, "swav", "swav", lambda c: c["state_dict"]),
    "swav-wide": (lambda: filled(wide_rows()), "swav", "swav", lambda c: c),
    "swav-several": (several_prototypes, "swav", "swav", lambda c: c),
    "vissl-several": (vissl_several_prototypes, "vissl", "vissl", lambda c: trunk_and_heads(c)),
    "avid-10": (avid_depth_10, "avid", "avid", lambda c: {"model": c["model"]}),
    "barlow_twins": (
        lambda: {"epoch": 1, "optimizer": {}, "model": filled(keys("barlow_twins_resnet50"), small={8192: 96})},
        "barlow_twins",
        "barlow_twins",
        lambda c: {"model": c["model"]},
    ),
    "torchvision": (
        lambda: filled(keys("barlow_twins_resnet50", "resnet50_pth")),
        "barlow_twins",
        "torchvision",
        lambda c: c,
    ),
    "simsiam": (
        lambda: {"epoch": 1, "arch": "resnet50", "optimizer": {}, "state_dict": filled(keys("simsiam_resnet50"))},
        "simsiam",
        "simsiam",
        lambda c: {"state_dict": c["state_dict"]},
    ),
    "vissl": (lambda: vissl(*vissl_tensors(0)), "vissl", "vissl", lambda c: trunk_and_heads(c)),
    "vissl-grouped": (lambda: vissl(*vissl_tensors(1)), "seer", "vissl-grouped", lambda c: trunk_and_heads(c)),
    "timm": (lambda: vissl_tensors(2)[0], "swav", "timm", lambda c: c),
    "avid": (lambda: avid("avid"), "avid", "avid", lambda c: {"model": c["model"]}),
    "cma": (lambda: avid("cma"), "avid", "avid", lambda c: {"model": c["model"]}),
    "byol": (byol_content, "byol", "byol", lambda c: c["experiment_state"]._asdict() | {"opt_state": None}),
}


def trunk_and_heads(content: dict) -> dict:
    return content["classy_state_dict"]["base_model"]["model"]


def flat(value, path: str = "") -> dict:
    if isinstance(value, dict):
        return {k: v for key, part in value.items() for k, v in flat(part, f"{path}/{key}").items()}
    if isinstance(value, torch.Tensor):
        value = value.numpy()
    return {path: (value.dtype, value.shape, value.tobytes())} if isinstance(value, np.ndarray) else {}


def save(content, path: Path) -> Path:
    if "experiment_state" in content:
        path.write_bytes(pickle.dumps(content, protocol=4))
    else:
        torch.save(content, path)
    return path


class Originals(dict):
    """Case -> (content, folder of its conversion), created on first access."""

    def __init__(self, place: Path):
        super().__init__()
        self.place = place

    def __missing__(self, case: str):
        make, method, _, _ = CASES[case]
        content = make()
        folder = convert(save(content, self.place / f"{case}.pth"), method, self.place / case)
        self[case] = content, folder
        return self[case]


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> Originals:
    return Originals(tmp_path_factory.mktemp("originals"))


@pytest.fixture
def features(request):
    torch.manual_seed(0)
    return torch.randn(2, 3, 64, 64)


@pytest.mark.parametrize("case", CASES)
def test_there_and_back_every_name_and_byte(case, originals, tmp_path):
    comes_back(case, *originals[case], tmp_path)


@pytest.mark.slow
def test_there_and_back_at_the_published_sizes(tmp_path):
    """Cases whose wide heads are narrowed in the other tests."""
    barlow_twins = {"epoch": 1, "optimizer": {}, "model": filled(keys("barlow_twins_resnet50"))}
    for method, content in {"barlow_twins": barlow_twins, "byol": byol_content(published=True)}.items():
        comes_back(method, content, convert(save(content, tmp_path / "x.pth"), method, tmp_path / method), tmp_path)


def comes_back(case: str, content: dict, folder: Path, tmp_path: Path) -> None:
    _, _, layout, part = CASES[case]
    file = convert_back(folder, layout, tmp_path / "back.pth")
    back = pickle.loads(file.read_bytes()) if case == "byol" else torch.load(file, weights_only=True)
    back = {"experiment_state": back["experiment_state"]}["experiment_state"] if case == "byol" else back
    back = trunk_and_heads(back) if case.startswith("vissl") else back
    expected, found = flat(part(content)), flat(back)
    assert expected.keys() == found.keys() and len(expected) > 100
    assert all(found[name] == value for name, value in expected.items())


def test_the_networks_are_told_from_their_tensors(originals):
    def config(case):
        return json.loads((originals[case][1] / "pretraining/config.json").read_text())

    swav = config("swav")
    assert (swav["backbone"], swav["backbone_args"]) == ("resnet50", None)
    assert (swav["projector_dims"], swav["num_prototypes"]) == ([2048, 128], 3000)
    assert swav["image_std"] == [0.228, 0.224, 0.225] and swav["projector_batch_norm"]
    assert config("barlow_twins")["projector_dims"] == [96, 96, 96]
    seer = config("vissl")
    assert (seer["backbone"], seer["projector_dims"]) == ("regnety_002", [64, 64, 16])
    assert (seer["sinkhorn_iterations"], seer["projector_batch_norm"]) == (10, False)
    byol = config("byol")
    assert (byol["padding"], byol["projector_hidden"], byol["output_bias"]) == ("same", 64, False)
    assert byol["backbone_args"] == {"channels": [32, 64, 128, 256]}
    assert config("avid")["video_backbone"] == "r2plus1d_18"
    assert config("avid-10")["video_backbone"] == "r2plus1d_10"
    assert config("swav-several")["num_prototypes"] == [30, 20, 30]
    assert config("vissl-several")["num_prototypes"] == [40, 25]
    assert not config("avid")["cma"] and config("cma")["cma"]
    assert not (originals["torchvision"][1] / "pretraining").exists()
    assert config("simsiam")["predictor_hidden"] == 512


@pytest.mark.parametrize("case", CASES)
def test_what_was_converted_loads(case, originals):
    folder = originals[case][1]
    _, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    if (folder / "pretraining").exists():
        _, info = AutoModelForPreTraining.from_pretrained(folder / "pretraining", output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"], info
    card = ModelCard.load(folder / "README.md")
    assert f"{case}.pth" in card.text and "$" not in card.text and str(folder.parent) not in card.text


def bare(state: dict, prefix: str) -> dict:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


@torch.no_grad()
def test_features_of_a_resnet_are_those_of_torchvision(originals, features):
    content, folder = originals["simsiam"]
    network = torchvision.models.resnet50(num_classes=1)
    network.fc = torch.nn.Identity()
    state = bare(content["state_dict"], "module.encoder.")
    network.load_state_dict({name: tensor for name, tensor in state.items() if not name.startswith("fc.")})
    expected = network.eval()(features)
    for encoder in (AutoModel.from_pretrained(folder).timm_model, timm.create_model(f"local-dir:{folder}", True)):
        torch.testing.assert_close(encoder.eval()(features), expected, rtol=1e-4, atol=1e-5)


def resnet(x, weights: dict, norm, convolve, pool) -> torch.Tensor:
    """Pooled features of a ResNet-50 v1.5 in plain PyTorch, with torchvision's names."""
    x = pool(norm(convolve(x, "conv1", 2), "bn1").relu())
    for stage, blocks in enumerate((3, 4, 6, 3), 1):
        for block in range(blocks):
            at, stride = f"layer{stage}.{block}.", 2 if stage > 1 and block == 0 else 1
            y = norm(convolve(x, at + "conv1", 1), at + "bn1").relu()
            y = norm(convolve(y, at + "conv2", stride), at + "bn2").relu()
            y = norm(convolve(y, at + "conv3", 1), at + "bn3")
            if block == 0:
                x = norm(convolve(x, at + "downsample.0", stride), at + "downsample.1")
            x = (x + y).relu()
    return x.mean((2, 3))


@torch.no_grad()
def test_a_wide_resnet_keeps_its_first_convolution(originals, features):
    content, folder = originals["swav-wide"]
    weights = bare(content, "module.")

    def norm(x, name):
        w = bare(weights, name + ".")
        return F.batch_norm(x, w["running_mean"], w["running_var"], w["weight"], w["bias"])

    def convolve(x, name, stride):
        weight = weights[name + ".weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    expected = resnet(features, weights, norm, convolve, lambda x: F.max_pool2d(x, 3, 2, 1))
    assert expected.shape == (2, 512)
    torch.testing.assert_close(AutoModel.from_pretrained(folder).timm_model.eval()(features), expected)
    torch.testing.assert_close(timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(features), expected)


@torch.no_grad()
def test_features_of_byol_are_those_of_tensorflows_padding(originals, features):
    content, folder = originals["byol"]
    params, state = content["experiment_state"].online_params, content["experiment_state"].online_state

    def module(name: str) -> str:
        parts = re.fullmatch(r"layer(\d)\.(\d)\.(conv|bn|downsample\.)(\d)", name)
        if parts is None:
            return "res_net50/~/" + {"conv1": "initial_conv", "bn1": "initial_batchnorm"}[name]
        group, block, kind, i = int(parts[1]) - 1, parts[2], parts[3], int(parts[4])
        leaf = {"conv": f"conv_{i - 1}", "bn": f"batchnorm_{i - 1}"}.get(kind) or (
            "shortcut_conv",
            "shortcut_batchnorm",
        )[i]
        return f"res_net50/~/block_group_{group}/~/block_{block}/~/{leaf}"

    def same(x, kernel, stride, value=0.0):
        total = [max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in x.shape[-2:]]
        return F.pad(x, [side for t in reversed(total) for side in (t // 2, t - t // 2)], value=value)

    def convolve(x, name, stride):
        weight = torch.from_numpy(params[module(name)]["w"]).permute(3, 2, 0, 1)
        return F.conv2d(same(x, weight.shape[-1], stride), weight, stride=stride)

    def norm(x, name):
        at, tensor = module(name), lambda array: torch.from_numpy(array).flatten()
        mean, var = (tensor(state[f"{at}/~/{kind}_ema"]["average"]) for kind in ("mean", "var"))
        return F.batch_norm(x, mean, var, tensor(params[at]["scale"]), tensor(params[at]["offset"]))

    def pool(x):
        return F.max_pool2d(same(x, 3, 2, -torch.inf), 3, 2)

    expected = resnet(features, params, norm, convolve, pool)  # Haiku's order and padding
    found = AutoModel.from_pretrained(folder)(features).pooler_output
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(RecipeError, match="padding=same.*different features"):
        convert_back(folder, "torchvision", folder.parent / "no.pth")


def test_arrays_of_another_order_or_kind(originals, tmp_path):
    trees = dict(originals["byol"][0]["experiment_state"]._asdict())
    module = "res_net50/~/initial_conv"
    kernel = trees["online_params"][module]["w"]
    trees["online_params"] = trees["online_params"] | {module: {"w": np.asfortranarray(kernel)}}
    again = convert(save({"experiment_state": trees}, tmp_path / "again.pkl"), "byol", tmp_path / "again")
    for file in ("pretraining/model.safetensors", "original.safetensors"):
        assert (again / file).read_bytes() == (originals["byol"][1] / file).read_bytes()
    for odd in (kernel.astype(object), kernel.astype(complex), "x", None):
        trees["online_params"] = trees["online_params"] | {module: {"w": odd}}
        with pytest.raises(RecipeError, match="online_params, res_net50/~/initial_conv/w is not a numeric array"):
            convert(save({"experiment_state": trees}, tmp_path / "odd.pkl"), "byol", tmp_path / "odd")


def test_a_model_of_ours_gets_the_original_names_unless_it_is_another_network(tmp_path):
    tensors = {}
    for name, fields in {"plain": {}, "small": {"stem": "small"}, "vit": {"backbone": "test_vit"}}.items():
        config = SwavConfig(**{"backbone": "resnet18", "projector_dims": [16, 8], "num_prototypes": 5} | fields)
        model = SwavForPreTraining(config)
        tensors[name] = model.state_dict()
        write_repo(tmp_path / name, model, tensors[name], {})
    back = torch.load(convert_back(tmp_path / "plain", "swav", tmp_path / "plain.pth"))
    assert back["module.layer4.1.bn2.running_var"].equal(tensors["plain"]["encoder.backbone.layer4.1.bn2.running_var"])
    assert back["module.prototypes.weight"].equal(tensors["plain"]["prototypes.weight"])
    again = weights(convert(tmp_path / "plain.pth", "swav", tmp_path / "again"))
    assert all(again[key].equal(tensor) for key, tensor in tensors["plain"].items())
    for name, said in {"small": "stem=small", "vit": "does not have these tensors: .*blocks"}.items():
        with pytest.raises(RecipeError, match=said):
            convert_back(tmp_path / name, "swav", tmp_path / "no.pth")


def test_arrays_are_read_from_every_protocol_of_pickle(tmp_path):
    state = _ByolExperimentState({"a": {"w": np.arange(6.0).reshape(2, 3).T}}, {}, {}, {}, [ScaleByLarsState(())])
    for protocol in range(2, 6):
        (tmp_path / "small.pkl").write_bytes(pickle.dumps({"x": state, "step": np.int64(3)}, protocol=protocol))
        content = read_pickle(tmp_path / "small.pkl")
        assert content["step"] == 3 and content["x"][0]["a"]["w"].tolist() == state.online_params["a"]["w"].tolist()


def weights(folder: Path) -> dict:
    model = AutoModelForPreTraining.from_pretrained(folder / "pretraining")
    return dict(model.state_dict())


def test_vissl_grouped_and_sliced_are_the_plain_one(originals, tmp_path):
    plain = weights(originals["vissl"][1])
    grouped = weights(originals["vissl-grouped"][1])
    slices = tmp_path / "model_layers"
    slices.mkdir()
    parts = []
    for part in vissl_tensors(0):
        parts.append({})
        for name, tensor in part.items():
            torch.save({"type": "slice", "weight": tensor}, slices / f"{name}.torch")
            parts[-1][name] = f"/elsewhere/model_layers/{name}.torch"
    torch.save(vissl(*parts, type="slice_list"), tmp_path / "model.torch")
    sliced = weights(convert(tmp_path / "model.torch", "swav", tmp_path / "sliced"))
    for other in (grouped, sliced):
        assert other.keys() == plain.keys() and all(other[n].equal(t) for n, t in plain.items())
    next(slices.iterdir()).unlink()
    with pytest.raises(RecipeError, match="needs the file model_layers/.*not in the same folder"):
        convert(tmp_path / "model.torch", "swav", tmp_path / "again")


def test_a_linear_classifier_goes_with_its_encoder_and_comes_back(originals, tmp_path, features):
    linear = {"module.linear.weight": torch.randn(7, 2048), "module.linear.bias": torch.randn(7)}
    torch.save({"epoch": 1, "state_dict": linear, "scheduler": {}}, tmp_path / "linear.pth")
    source = originals.place / "torchvision.pth"
    originals["torchvision"]
    folder = convert(source, "swav", tmp_path / "swav", classifier=tmp_path / "linear.pth")
    model = AutoModelForImageClassification.from_pretrained(folder / "classification")
    with torch.no_grad():
        pooled = AutoModel.from_pretrained(folder).timm_model.eval()(features)
        expected = pooled @ linear["module.linear.weight"].T + linear["module.linear.bias"]
        torch.testing.assert_close(model(features).logits, expected, rtol=1e-4, atol=1e-4)
    back = torch.load(convert_back(folder, "swav-linear", tmp_path / "back.pth"))["state_dict"]
    assert back.keys() == linear.keys() and all(back[name].equal(linear[name]) for name in linear)
    with pytest.raises(RecipeError, match="do not match any ResNet"):
        convert(tmp_path / "linear.pth", "swav", tmp_path / "alone")


@pytest.mark.parametrize(
    "name", ["regnety_320", "regnety_640", "regnety_1280", "regnety_2560", "regnety_10b", "regnety_160"]
)
def test_seers_regnets_are_told_apart(name):
    from hf_ssl.hub.convert.backbones import BACKBONE, backbone_fields

    config = SwavConfig.seer(name)
    with torch.device("meta"):
        state = timm.create_model(config.backbone, num_classes=0, **(config.backbone_args or {})).state_dict()
    found = backbone_fields({BACKBONE + key: tensor for key, tensor in state.items()})
    assert found == {"backbone": config.backbone, "backbone_args": config.backbone_args}


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def test_nothing_in_a_file_is_executed(tmp_path, originals):
    mark = tmp_path / "executed"
    small = filled(wide_rows()[:3])
    for content in ({"state_dict": small, "extra": Evil(mark)}, Evil(mark), {"module.conv1.weight": Evil(mark)}):
        for method, write in (("swav", torch.save), ("byol", lambda c, p: p.write_bytes(pickle.dumps(c, protocol=2)))):
            write(content, tmp_path / "evil.pkl")
            with pytest.raises(RecipeError, match=r"(system|asks for torch\.).*never does"):
                convert(tmp_path / "evil.pkl", method, tmp_path / "out")
    state = byol_content()["experiment_state"]
    for spoilt in (state._replace(opt_state=[Evil(mark)]), {"online_params": Evil(mark)}, codecs.lookup):
        (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"experiment_state": spoilt}))
        with pytest.raises(RecipeError, match="asks for .*never does"):
            convert(tmp_path / "evil.pkl", "byol", tmp_path / "out")
    (tmp_path / "evil.pkl").write_bytes(b"cbuiltins\neval\n(S'open(\"" + str(mark).encode() + b'", "w")\'\ntR.')
    with pytest.raises(RecipeError, match="builtins.eval"):
        convert(tmp_path / "evil.pkl", "byol", tmp_path / "out")
    assert not mark.exists() and not (tmp_path / "out").exists()


def test_avid_carries_the_mean_and_deviation_of_every_band_of_the_authors_file(originals, tmp_path, caplog):
    originals["avid"]
    caplog.clear()  # drop messages of the conversion
    file, generator = originals.place / "avid.pth", np.random.default_rng(0)
    mean = generator.uniform(-53.9, -0.1, 257).astype(np.float32)
    std = generator.uniform(17.4, 21.4, 257).astype(np.float32)
    np.savez(tmp_path / "stats.npz", mean=mean, std=std)
    folder = convert(file, "avid", tmp_path / "avid", statistics=tmp_path / "stats.npz")
    assert not caplog.messages or "1.4 std" not in caplog.text
    for place in (folder, folder / "pretraining"):
        config = json.loads((place / "config.json").read_text())
        assert config["audio_mean"] == mean.tolist() and config["audio_std"] == std.tolist()
    waveform = generator.normal(size=48000).astype(np.float32)
    with_bands, averaged = (
        np.asarray(AvidFeatureExtractor.from_pretrained(place)(waveform, sampling_rate=24000)["input_values"])
        for place in (folder, originals["avid"][1])
    )
    expected = (averaged * np.float32(19.7 + 1e-5) - 28.5 - mean) / (std + 1e-5)
    np.testing.assert_allclose(with_bands, expected, atol=1e-4)
    card = (folder / "README.md").read_text()
    assert "--statistics stats.npz" in card and "1.4 std" not in card


def test_avid_without_the_file_of_its_bands_says_how_far_features_are_shifted(tmp_path, caplog):
    torch.save(avid("avid"), tmp_path / "avid.pth")
    folder = convert(tmp_path / "avid.pth", "avid", tmp_path / "avid")
    assert "up to 1.4 std" in caplog.text and "--statistics" in caplog.text
    assert "up to 1.4 std" in (folder / "README.md").read_text()


def test_a_file_that_has_no_statistics_of_avids_bands_is_refused(tmp_path):
    good = {"mean": np.zeros(257), "std": np.ones(257)}
    for said, content in {
        "statistics of 129 bands.*513-norm-stats": {"mean": np.zeros(129), "std": np.ones(129)},
        "not an .npz file with the arrays mean and std": {"mean": np.zeros(257)},
        "a std of 0 or less": good | {"std": np.zeros(257)},
        "are not finite": good | {"mean": np.full(257, np.nan)},
        r"mean and std \(ValueError\)": good | {"mean": np.array([Evil(tmp_path / "mark")] * 257, dtype=object)},
    }.items():
        np.savez(tmp_path / "stats.npz", **content)
        with pytest.raises(RecipeError, match=said):
            convert("absent.pth", "avid", tmp_path / "out", statistics=tmp_path / "stats.npz")
    (tmp_path / "stats.npz").write_text("no archive")
    with pytest.raises(RecipeError, match="not an .npz file"):
        convert("absent.pth", "avid", tmp_path / "out", statistics=tmp_path / "stats.npz")
    with pytest.raises(RecipeError, match="There is no file .*absent.npz"):
        convert("absent.pth", "avid", tmp_path / "out", statistics=tmp_path / "absent.npz")
    with pytest.raises(RecipeError, match="remove it for swav"):
        convert("absent.pth", "swav", tmp_path / "out", statistics=tmp_path / "stats.npz")
    assert not (tmp_path / "mark").exists()


DILLS = ("0.3.1.1", "0.3.2", "0.3.4", "0.4.0")


def dilled(version: str) -> bytes:
    return gzip.decompress((FIXTURES / f"byol_dill_{version}.pkl.gz").read_bytes())


@pytest.mark.parametrize("version", DILLS)
def test_a_state_that_dill_wrote_is_read_and_converted(version, tmp_path):
    (tmp_path / "pretrain.pkl").write_bytes(dilled(version))
    content = read_pickle(tmp_path / "pretrain.pkl")
    assert content["step"] == 1000 and content["rng"].tolist() == [3, 4]
    folder = convert(tmp_path / "pretrain.pkl", "byol", tmp_path / "byol")
    back = pickle.loads(convert_back(folder, "byol", tmp_path / "back.pkl").read_bytes())
    assert flat(back["experiment_state"]) == flat(trees())
    assert AutoModel.from_pretrained(folder)(torch.ones(1, 3, 32, 32)).pooler_output.isfinite().all()


def with_text(content: bytes, old: str, new: str) -> bytes:
    """Replace one text in a pickle."""
    text = lambda said: b"X" + len(said).to_bytes(4, "little") + said.encode()  # noqa: E731
    assert text(old) in content
    return content.replace(text(old), text(new))


@pytest.mark.parametrize("version", DILLS)
def test_a_state_that_dill_wrote_executes_nothing(version, tmp_path):
    sound, core = dilled(version), "numpy._core.multiarray" if version == "0.4.0" else "numpy.core._multiarray_umath"
    hostile = {
        "byol.byol_experiment.system": with_text(sound, "_ByolExperimentState", "system"),
        "byol.utils.optimizers.eval": with_text(sound, "ScaleByLarsState", "eval"),
        "posix.system": sound.replace(b"cdill._dill\n_create_namedtuple\n", b"cposix\nsystem\n"),
        "dill._dill._create_function": sound.replace(b"_create_namedtuple\n", b"_create_function\n"),
        "numpy.load": sound.replace(b"cnumpy\nndarray\n", b"cnumpy\nload\n"),
    }
    if version == "0.4.0":
        hostile["an unexpected function"] = sound.replace(f"c{core}\n_reconstruct\n".encode(), b"cnumpy\nndarray\n")
        hostile["dill._dill._eval_repr"] = sound.replace(b"_create_array\n", b"_eval_repr\n")
    else:
        hostile["os._reconstruct"] = with_text(sound, core, "os")
        hostile[f"{core}.system"] = with_text(sound, "_reconstruct", "system")
        hostile["dill._dill._getattr"] = sound.replace(b"_get_attr\n", b"_getattr\n")
    for said, content in hostile.items():
        (tmp_path / "evil.pkl").write_bytes(content)
        with pytest.raises(RecipeError, match=f"asks for .*{said}.*never does"):
            convert(tmp_path / "evil.pkl", "byol", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_odd_tensors_are_named(tmp_path):
    sound = filled(wide_rows())
    name = "module.layer3.4.conv2.weight"

    def expect(content, match, method="swav"):
        torch.save(content, tmp_path / "odd.pth")
        with pytest.raises(RecipeError, match=match) as error:
            convert(tmp_path / "odd.pth", method, tmp_path / "out")
        assert "odd.pth" in str(error.value)

    without = {key: tensor for key, tensor in sound.items() if key != name}
    expect(without, r"missing: layer3\.4\.conv2\.weight\.")
    expect(without | {name + "s": sound[name]}, r"Unexpected or duplicate tensors: layer3.4.conv2.weights")
    expect(sound | {name: sound[name].flatten()}, r"another shape or kind: layer3\.4\.conv2\.weight")
    expect(sound | {name: sound[name].long()}, "another shape or kind")
    expect(sound | {name: 3}, "that are not tensors: layer3.4.conv2.weight")
    expect(sound | {name: sound[name].to_sparse()}, "that are not tensors: layer3.4.conv2.weight")
    expect(sound | {"module.layer3.04.conv2.weight": sound[name]}, "Unexpected or duplicate tensors")
    expect(sound | {"module.extra.weight": sound[name]}, "Unexpected or duplicate tensors: extra.weight")
    expect({"state_dict": sound, "ema": {"a": sound[name]}}, "Unknown entries with tensors: ema")
    expect(sound, "has the layout of swav", "simsiam")
    few = {key: tensor for key, tensor in sound.items() if "layer4.2" not in key}
    expect(few, "do not match any ResNet-18 to 200")
    expect({"state_dict": []}, "does not have the layout")
    expect([], "does not have the layout")
    expect({"classy_state_dict": {"base_model": {"model": [1]}}}, "no classy_state_dict.base_model.model")
    expect({"type": "shard_list", "shards": ["a", "b"]}, "convert_sharded_checkpoint")
    crossed = {"_feature_blocks.res3.block1-0.f.a.0.weight": sound[name]}
    expect(vissl(crossed, {}), "Unexpected or duplicate tensors: trunk._feature_blocks.res3.block1-0")


def test_a_spoilt_file_gives_a_clear_error_or_the_same_network(originals, tmp_path):
    generator = np.random.default_rng(0)
    for case, method in (("timm", "swav"), ("byol", "byol")):
        names = set(flat(CASES[case][3](originals[case][0])))
        sound = (originals.place / f"{case}.pth").read_bytes()
        for i in range(9 if case == "timm" else 6):
            spoilt = bytearray(sound)
            if i % 3 == 0:
                spoilt = spoilt[: int(generator.integers(0, len(sound) - 1))]
            elif i % 3 == 1:
                spoilt = spoilt[len(spoilt) // 2 :] + spoilt[: len(spoilt) // 2]
            else:  # noise, which may only hit numbers
                at = int(generator.integers(0, 5000))
                spoilt[at : at + 20] = generator.bytes(20)
            (tmp_path / "spoilt.pkl").write_bytes(spoilt)
            try:
                folder = convert(tmp_path / "spoilt.pkl", method, tmp_path / "out")
            except RecipeError as error:
                assert "spoilt.pkl" in str(error)
                continue
            assert i % 3 == 2
            back = convert_back(folder, case, tmp_path / "back.pth")
            content = read_pickle(back)["experiment_state"] if case == "byol" else torch.load(back)
            assert set(flat(content)) == names


def test_tensors_in_another_order_or_of_one_storage_are_the_same(originals, tmp_path):
    content, folder = originals["timm"]
    names = list(content)[::-1]
    storage = torch.cat([content[name].flatten().float() for name in names])
    views, start = {}, 0
    for name in names:
        views[name] = storage[start : start + content[name].numel()].view(content[name].shape)
        views[name] = content[name] if name.endswith("tracked") else views[name]
        start += content[name].numel()
    torch.save(views, tmp_path / "views.pth")
    again = convert(tmp_path / "views.pth", "swav", tmp_path / "again")
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_the_command_converts_both_ways_and_guards_folders(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = vissl_tensors(2)[0]
    save_file(content, "seer.safetensors")
    main(["convert", "seer.safetensors", "--method", "seer"])
    assert capsys.readouterr().out.strip() == "seer"
    main(["convert", "seer", "--to", "timm", "--output", "back.safetensors"])
    assert flat(torch.load(convert_back("seer", "timm", "back.pth"))) == flat(content)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("x")
    for wrong, said in (
        (["seer.safetensors", "--method", "seer", "--output", "mine"], "not made by hf-ssl convert"),
        (["seer.safetensors", "--method", "sver", "--output", "y"], "did you mean seer"),
        (["seer.safetensors"], "Pass --method"),
        (["seer", "--to", "avid", "--output", "x"], "layout avid does not support"),
        (["seer", "--to", "torchvision", "--output", "x"], "does not have these tensors"),
        (["absent.pth", "--method", "swav"], "no file absent.pth"),
        (["mine", "--to", "swav", "--output", "x"], "not an exported model"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["convert", *wrong])
        assert stop.value.code == 2 and said in capsys.readouterr().err, wrong
    assert not (tmp_path / "x").exists()


def byol_roundtrip(tmp_path: Path, **fields) -> tuple[dict, dict, dict]:
    """Tensors of a small BYOL before and after conversion to the authors' layout and back, and its configuration."""
    small = {"projector_hidden": 16, "projector_dim": 8, "predictor_hidden": 16, "padding": "same"}
    model = ByolForPreTraining(ByolConfig(**small | fields))
    write_repo(tmp_path / "ours", model, model.state_dict(), {})
    back = convert_back(tmp_path / "ours", "byol", tmp_path / "theirs.pkl")
    again = convert(back, "byol", tmp_path / "again")
    config = json.loads((again / "pretraining/config.json").read_text())
    return dict(model.export_parts()[1]), weights(again), config


def test_a_resnet_18_of_deepmind_has_a_projection_in_its_first_shortcut(tmp_path):
    before, after, config = byol_roundtrip(tmp_path, backbone="resnet18", first_shortcut="projection")
    assert config["first_shortcut"] == "projection" and "encoder.backbone.layer1.0.downsample.0.weight" in after
    assert after.keys() == before.keys() and all(after[name].equal(tensor) for name, tensor in before.items())
    content = read_pickle(tmp_path / "theirs.pkl")["experiment_state"]["online_params"]
    assert content["res_net18/~/block_group_0/~/block_0/~/shortcut_conv"]["w"].shape == (1, 1, 64, 64)
    with pytest.raises(RecipeError, match="padding=same"):
        convert_back(tmp_path / "ours", "torchvision", tmp_path / "no.pth")


def test_wide_weights_of_byol_convert_whatever_the_depth(tmp_path):
    wide = {"backbone": "resnet152", "stem": "wide", "backbone_args": {"channels": [8, 16, 32, 64]}}
    before, after, config = byol_roundtrip(tmp_path, **wide)
    assert (config["backbone"], config["stem"]) == ("resnet152", "wide")
    assert after["encoder.backbone.conv1.weight"].shape == (8, 3, 7, 7)
    assert after.keys() == before.keys() and all(after[name].equal(tensor) for name, tensor in before.items())


def test_a_projection_is_refused_where_the_original_network_has_none(tmp_path):
    fields = {"projector_dims": (8, 4), "num_prototypes": 3, "first_shortcut": "projection"}
    model = SwavForPreTraining(SwavConfig(backbone="resnet18", **fields))
    write_repo(tmp_path / "ours", model, model.state_dict(), {})
    with pytest.raises(RecipeError, match="first_shortcut=projection"):
        convert_back(tmp_path / "ours", "swav", tmp_path / "no.pth")


def test_a_disk_that_is_full_leaves_the_file_that_was_there(tmp_path, monkeypatch):
    model = SwavForPreTraining(SwavConfig(backbone="resnet18", projector_dims=[16, 8], num_prototypes=5))
    write_repo(tmp_path / "ours", model, model.state_dict(), {})
    (tmp_path / "back.pth").write_bytes(b"of before")

    def save(content, file):
        Path(file).write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:659] . unexpected pos 128 vs 22")

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(UserError, match=r"back\.pth could not be written .*; free some space"):
        convert_back(tmp_path / "ours", "swav", tmp_path / "back.pth")
    assert (tmp_path / "back.pth").read_bytes() == b"of before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back.pth", "ours"]
