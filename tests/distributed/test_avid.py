# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""AVID and CMA do not depend on the number of processes: loss, gradients, memories, normalizers, positive sets."""

import os
from functools import partial

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate import Accelerator
from torch.nn.parallel import DistributedDataParallel

from hf_ssl.data.modality import modality_of
from hf_ssl.data.sources import load_source
from hf_ssl.evaluation.images import raw_pixel_embedding
from hf_ssl.models import AvidForPreTraining, SimSiamConfig
from hf_ssl.models.memory_avid import negatives_of_draws
from hf_ssl.recipe import DataConfig, MonitorConfig
from hf_ssl.training.accelerator import synchronize_batchnorm
from hf_ssl.training.monitor import Monitor
from tests.conftest import digit_dataset
from tests.distributed.processes import run_on_ranks, share
from tests.models.test_avid import of_case, tiny
from tests.models.test_losses import assert_close, cases
from tests.sources import ImageSource


ORACLE, DOUBLE = 2e-7, 1e-10
STEPS, BATCH, CLIPS = 5, 8, 37  # 37 clips: the search for positives does not divide evenly


def oracles() -> dict:
    """The batch of the published code, split over processes."""
    found = {}
    for path in cases("avid_ranks"):
        case = np.load(path)
        model = of_case(case, torch.float64)
        draws = share(torch.tensor(case["draws"]))
        model.memory.draw_negatives = lambda own, positives, draws=draws: negatives_of_draws(draws, own)
        raw = [share(torch.tensor(case[m]).double()).clone().requires_grad_() for m in ("video", "audio")]
        video, audio = (F.normalize(x, dim=1) for x in raw)
        indices = share(torch.tensor(case["y"]))
        loss = model.objective(video, audio, indices)
        loss.backward()
        model.memory.update(video.detach(), audio.detach(), indices, case["momentum"][0].item())
        found[path.stem] = {
            "loss": loss.detach(),
            "z": model.normalizer[0],
            "grad_video": raw[0].grad,
            "grad_audio": raw[1].grad,
            "video_memory_after": model.video_memory,
            "audio_memory_after": model.audio_memory,
        }
    return found


def training(cma: bool) -> list[dict]:
    """Steps under DDP with synchronized BatchNorm, in float64; one instance occurs twice in a batch."""
    torch.manual_seed(0)
    objective = {"cma": cma, "num_positives": 5, "num_negatives_within": 4, "positives_every_epochs": 1}
    options = {"head_batch_norm": True, "partition": "per_term", "exclude_anchor": True, "num_instances": CLIPS}
    model = AvidForPreTraining(tiny(**objective, **options)).double().train()
    network = model
    if dist.is_initialized():
        model = synchronize_batchnorm(model, torch.device("cpu"))
        network = DistributedDataParallel(model, broadcast_buffers=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)  # Adam amplifies rounding where gradients vanish
    steps = []
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        frames = torch.randn(BATCH, 2, 3, 32, 32, generator=generator, dtype=torch.float64)
        sound = torch.randn(BATCH, 40, 33, generator=generator, dtype=torch.float64)
        indices = torch.randperm(CLIPS, generator=generator)[:BATCH]
        indices[-1] = indices[1]
        model.before_step(step, STEPS, 2)
        output = network(share(frames), share(sound), share(indices))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        model.after_step(step, STEPS, 2)
        steps.append({"loss": output.loss.detach(), **{name: b.clone() for name, b in model.named_buffers()}})
        steps[-1]["weight"] = model.encoder.audio_projector[0].weight.detach().clone()
    return steps


def compute() -> dict:
    return {"oracles": oracles(), "avid": training(False), "cma": training(True)}


@pytest.fixture(scope="module")
def one() -> dict:
    return compute()


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)], ids=lambda n: f"processes{n}")
def ranks(request, tmp_path_factory) -> list[dict]:
    return run_on_ranks(compute, request.param, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("path", cases("avid_ranks"), ids=lambda p: p.stem)
def test_loss_normalizer_and_memories_are_the_published_ones_on_any_number_of_processes(path, ranks):
    case = np.load(path)
    z = case["z_by_world"][case["worlds"].tolist().index(len(ranks))]
    for name in ("grad_video", "grad_audio"):
        ours = torch.cat([rank["oracles"][path.stem][name] for rank in ranks])
        assert_close(ours / len(ranks), case[name], ORACLE)
    for rank in ranks:
        ours = rank["oracles"][path.stem]
        assert_close(ours["loss"], case["loss"], ORACLE)
        assert_close(ours["z"] / z, np.array(1.0), ORACLE)
        for memory in ("video_memory_after", "audio_memory_after"):
            assert_close(ours[memory], case[memory], ORACLE)


@pytest.mark.parametrize("objective", ["avid", "cma"])
def test_training_stays_on_the_course_of_one_process(objective, ranks, one):
    for step, expected in enumerate(one[objective]):
        for rank in ranks:
            ours = rank[objective][step]
            assert ours.keys() == expected.keys()
            for name, tensor in expected.items():
                if tensor.is_floating_point():
                    assert_close(ours[name], tensor, DOUBLE)
                else:
                    assert torch.equal(ours[name], tensor), name
    if objective == "cma":
        first, last = one["cma"][0]["positive_set"], one["cma"][-1]["positive_set"]
        assert (first >= 0).all() and (first != last).any(), "the sets were found, and found anew"


def measure_one(videos: str) -> dict:
    """Measurements with a single query and a single image, so that other processes have none."""
    rank = str(dist.get_rank())
    os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=str(dist.get_world_size()), ACCELERATE_USE_CPU="true")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")  # required but unused: the process group exists
    accelerator = Accelerator()
    assert accelerator.num_processes == dist.get_world_size()
    torch.manual_seed(0)
    model = AvidForPreTraining(tiny())
    clip = load_source(DataConfig(path=videos), "test", "video").select([0])
    clips = Monitor(MonitorConfig(), modality_of(model.config), model.config, accelerator, None, clip).measure(model)
    image = ImageSource(digit_dataset(0, 1))
    config = SimSiamConfig(image_size=32)
    images = Monitor(MonitorConfig(), modality_of(config), config, accelerator, image, image)
    return {"clips": clips["video_to_audio_r1"], "images": images.measures.knn(raw_pixel_embedding)}


def test_a_process_without_any_clip_or_image_of_the_monitor_waits_for_the_others(videos, tmp_path):
    found = run_on_ranks(partial(measure_one, str(videos)), 2, tmp_path)
    assert found == [{"clips": 1.0, "images": 1.0}] * 2
