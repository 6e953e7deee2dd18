# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""`hf-ssl plan` against tensors that are really there, and against arithmetic."""

import json

import pytest
import torch
import torch.distributed as dist
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.device_mesh import init_device_mesh

import hf_ssl.plan as planning
from hf_ssl.cli import main
from hf_ssl.models import METHODS
from hf_ssl.plan import GIB, parse_memory, plan, table, track_frozen
from hf_ssl.recipe import RecipeError, recipe_from_dict
from hf_ssl.resolve import model_config
from hf_ssl.training.fsdp import fully_shard_units
from tests.distributed.processes import run_on_ranks
from tests.methods import fields


FEW_LAYERS = {"backbone": "test_resnet", "backbone_args": {}}  # where the size of the encoder does not matter


@pytest.fixture(scope="module", autouse=True)
def simulate_once():
    """The tests ask for the same few simulations again and again, at two seconds each."""
    simulate, found = planning._simulate, {}

    def remembered(*args):
        key = repr(args)  # of the recipe, the configuration, the views and numbers: all fields of each
        if key not in found:
            found[key] = simulate(*args)
        return found[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "_simulate", remembered)
        yield


def small(method: str = "swav", **changes):
    args = {"depth": 6, "w0": 16, "wa": 16.0, "wm": 2.0, "group_size": 8}
    model = {name: value for name, value in fields(method).items() if name != "image_size"}
    content = {
        "method": method,
        "views": {"all": {"size": 48}},
        "model": model if method == "avid" else model | {"backbone": "regnety_002", "backbone_args": args},
        "optim": {"name": "larc"},
        "train": {"steps": 100, "batch_size": 16},
    }
    if method == "swav":
        content["views"]["local"] = {"size": 32, "count": 2}
        content["model"] |= {"projector_dims": [128, 64], "num_prototypes": 40}
    for section, values in changes.items():
        content[section] |= values
    return recipe_from_dict(content)


def measured(recipe, batch: int, size: int = 48) -> float:
    """GiB at the peak of a real forward and backward pass, as torch's tracker sees it."""
    config = model_config(recipe, 48)
    model = METHODS[recipe.method][1](config).train()
    inputs = [torch.randn(batch, 2, 3, size, size)]
    if recipe.method == "swav":
        inputs.append(torch.randn(batch, 2, 3, 32, 32))
    if recipe.method == "avid":
        sound = torch.randn(batch, config.num_audio_frames, config.num_bands)
        inputs = [torch.randn(batch, config.num_frames, 3, size, size), sound, torch.arange(batch)]
    if dist.is_initialized():
        fully_shard_units(model, init_device_mesh("cpu", (dist.get_world_size(),)), "no")
        tracker = FSDPMemTracker(model)
        tracker.track_inputs(tuple(inputs))
    else:
        track_frozen(model)
        tracker = MemTracker()
        tracker.track_external(model, *inputs)
    with tracker:
        model(*inputs).loss.backward()
    [kinds] = tracker.get_tracker_snapshot("peak").values()
    return kinds["Total"] / GIB


def measured_on_a_rank() -> float:
    return measured(small(), 8)


@pytest.mark.parametrize("method", [m if m == "swav" else pytest.param(m, marks=pytest.mark.slow) for m in METHODS])
def test_one_process_needs_what_a_real_step_needs(method):
    recipe = small(method)
    gib = plan(recipe, 1, precision="no")["gib"]
    assert gib["forward and backward"] - gib["optimizer"] == pytest.approx(measured(recipe, 16), rel=0.02)


def test_one_of_two_needs_what_a_real_sharded_step_needs(tmp_path):
    gib = plan(small(), 2, precision="no")["gib"]
    for real in run_on_ranks(measured_on_a_rank, 2, tmp_path):
        assert gib["forward and backward"] - gib["optimizer"] == pytest.approx(real, rel=0.02)


@pytest.mark.slow
def test_recomputed_activations_and_half_precision_need_less():
    plain = plan(small(model=FEW_LAYERS), 2, precision="no")["gib"]["activations"]
    recomputed = small(model=FEW_LAYERS, train={"gradient_checkpointing": True})
    assert plan(recomputed, 2, precision="no")["gib"]["activations"] < 0.8 * plain
    assert plan(small(model=FEW_LAYERS), 2, precision="bf16")["gib"]["activations"] < 0.8 * plain


def test_shares_traffic_and_hours_are_arithmetic():
    two, four = (plan(small(model=FEW_LAYERS), n, precision="no", images_per_second=10) for n in (2, 4))
    count = two["parameters"]
    assert two["state_gib_of_all_processes"] * GIB == pytest.approx(12 * count)
    for result, processes in ((two, 2), (four, 4)):
        for kind in ("parameters", "optimizer"):
            assert result["gib"][kind] * GIB == pytest.approx(4 * count / processes, rel=0.01)
    # Gradients once; heads twice; the encoder four times, for global and small crops, there and back.
    encoder = four["encoder_parameters"]
    expected = 4 * (count + 2 * (count - encoder) + 4 * encoder) * 3 / 4
    assert four["traffic_gib_per_step"] * GIB == pytest.approx(expected, rel=0.05)  # BatchNorms are gathered once
    assert two["hours"] == pytest.approx(100 * 16 / 10 / 3600)


@pytest.mark.slow
def test_the_largest_batch_fits_and_a_larger_one_does_not():
    memory = 0.25 * GIB

    def of_batch(size: int, **more):
        return plan(small(model=FEW_LAYERS, train={"batch_size": 2 * size}), 2, **more)

    largest = of_batch(8, memory=memory)["largest_batch_per_process"]
    assert of_batch(largest)["gib"]["peak"] * GIB <= 1.01 * memory
    assert of_batch(largest + 4)["gib"]["peak"] * GIB > memory
    assert any("does not fit" in note for note in of_batch(8, memory=0.001 * GIB)["warnings"])


def test_where_the_optimizer_needs_most_the_batch_is_still_a_number():
    """A large head and tiny images: twice the batch does not change the peak."""
    recipe = small(model={**FEW_LAYERS, "projector_dims": [4096, 4096, 64]}, train={"batch_size": 2})
    result = plan(recipe, 1, precision="no", memory=2 * GIB)
    assert result["gib"]["peak"] == result["gib"]["optimizer's step"] > result["gib"]["forward and backward"]
    assert result["largest_batch_per_process"] > 2
    assert plan(recipe, 1, precision="no", memory=0.1 * GIB)["largest_batch_per_process"] == 0


def test_what_cannot_work_is_said():
    notes = " ".join(plan(small(model=FEW_LAYERS), 3)["warnings"])
    assert "is not divisible by 3 process(es)" in notes
    assert any("fewer rows than there" in note for note in plan(small(model=FEW_LAYERS), 32)["warnings"])
    few = small(train={"sync_batchnorm": False}, model={**FEW_LAYERS, "num_prototypes": 400})
    notes = " ".join(plan(few, 2)["warnings"])
    assert "statistics come from only 8 images" in notes and "400 prototypes for 16 images" in notes


def test_the_command_prints_a_table_or_json(tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(small(model=FEW_LAYERS).to_yaml())
    main(["plan", str(path), "--processes", "2", "--memory", "1GiB", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert result["largest_batch_per_process"] > 8 and not dist.is_initialized()
    assert "largest batch" in table(result)
    with pytest.raises(SystemExit) as stop:
        main(["plan", str(path), "--processes", "2", "--memory", "much"])
    assert stop.value.code == 2 and "is not a size" in capsys.readouterr().err
    assert parse_memory("80GB") == 80e9 and parse_memory("1.5") == 1.5 * GIB
    with pytest.raises(RecipeError, match="at least 1"):
        plan(small(model=FEW_LAYERS), 0)


@pytest.mark.slow
def test_ten_billion_parameters_on_496_processes(capsys):
    main(["plan", "seer/regnety_10b", "--processes", "496", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert result["batch_per_process"] == 16
    assert result["state_gib_of_all_processes"] == pytest.approx(107.6, abs=0.05)
    assert result["gib"]["parameters"] == pytest.approx(107.6 / 3 / 496, rel=0.05)  # rounded up to rows
    assert result["gib"]["peak"] < 40, "it was trained on cards of 40 GB"


def test_without_processes_it_is_this_machine(capsys):
    overrides = ["model.backbone=test_resnet", "views.all.size=32", "train.batch_size=8"]
    main(["plan", "my_images", *overrides, "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["processes"] == max(1, torch.accelerator.device_count()) and told["memory_gib"] > 0
    assert told["largest_batch_per_process"] > 8
