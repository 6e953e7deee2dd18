# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""AVID and CMA: losses, memories and positive sets of the published code, towers with the published size."""

import copy
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hf_ssl.models import (
    AvidConfig,
    AvidForAudioClassification,
    AvidForPreTraining,
    AvidForVideoClassification,
    AvidModel,
    cma_positives,
    nce_loss,
)
from hf_ssl.models.memory_avid import memory_scores, negatives_of_draws, random_numbers
from hf_ssl.models.towers_avid import R2Plus1D
from tests.methods import fields
from tests.models.test_losses import DTYPES, assert_close, bound, cases, leaf


def tiny(**changes) -> AvidConfig:
    return AvidConfig(**fields("avid", **changes))


def inputs(batch: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "pixel_values_videos": torch.randn(batch, 2, 3, 32, 32, generator=generator),
        "input_values": torch.randn(batch, 40, 33, generator=generator),
        "indices": torch.randperm(40, generator=generator)[:batch],
    }


def of_case(case, dtype, **changes) -> AvidForPreTraining:
    """A model with the memories of a stored case; it takes embeddings instead of clips."""
    memory = case["video_memory"]
    model = AvidForPreTraining(
        tiny(
            projector_dims=[memory.shape[1]],
            num_instances=len(memory),
            num_negatives=case["draws"].shape[-1],
            temperature=case["temperature"].item(),
            memory_momentum=case["momentum"][0].item(),
            **changes,
        )
    ).to(dtype)
    for modality in ("video", "audio"):
        getattr(model, f"{modality}_memory").copy_(torch.tensor(case[f"{modality}_memory"]))
    return model


def step(model: AvidForPreTraining, video, audio, y, draws) -> torch.Tensor:
    """One training step of the objective alone, with given draws."""
    model.memory.draw_negatives = lambda own, positives: negatives_of_draws(
        draws, own if positives is None else positives
    )
    unit = [F.normalize(x, dim=1) for x in (video, audio)]
    loss = model.objective(*unit, y)
    loss.backward()
    model.memory.keep(*unit, y)
    model.after_step(0, 1, 1)
    return loss


def check(model: AvidForPreTraining, case, dtype) -> None:
    for s in (0, 1):
        video, audio = leaf(case["video"][s], dtype), leaf(case["audio"][s], dtype)
        loss = step(model, video, audio, torch.tensor(case["y"][s]), torch.tensor(case["draws"][s]))
        assert_close(loss, case[f"loss{s}"], bound(dtype, 1e-5))
        assert_close(video.grad, case[f"grad_video{s}"], bound(dtype, 1e-5))
        assert_close(audio.grad, case[f"grad_audio{s}"], bound(dtype, 1e-5))
        assert_close(model.video_memory, case[f"video_memory_after{s}"], bound(dtype, 1e-5))
        assert_close(model.audio_memory, case[f"audio_memory_after{s}"], bound(dtype, 1e-5))
        assert_close(model.normalizer[0] / case["z"].item(), np.array(1.0), bound(dtype, 1e-5))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("path", cases("avid_loss"), ids=lambda p: p.stem)
def test_two_steps_of_avid(path, dtype):
    case = np.load(path)
    coefficients = {"cross_coeff": case["xmodal_coeff"].item(), "within_coeff": case["wmodal_coeff"].item()}
    check(of_case(case, dtype, **coefficients), case, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("path", cases("cma_loss"), ids=lambda p: p.stem)
def test_two_steps_of_cma(path, dtype):
    case = np.load(path)
    model = of_case(
        case,
        dtype,
        cma=True,
        cross_coeff=case["xmodal_instance_coeff"].item(),
        cross_positive_coeff=case["xmodal_positive_coeff"].item(),
        within_positive_coeff=case["wmodal_positive_coeff"].item(),
        num_positives=case["pos_k"].item(),
        num_negatives_within=case["negatives_within"].item(),
        agreement=str(case["mode"]),
    )
    model.before_step(0, 1, 1)
    assert (model.positive_set.numpy() == case["positive_set"]).all()
    check(model, case, dtype)


@pytest.mark.parametrize("path", [*cases("avid_loss"), *cases("cma_loss")], ids=lambda p: p.stem)
def test_negatives_pass_over_what_is_excluded(path):
    case = np.load(path)
    for s in (0, 1):
        excluded = torch.tensor(case["positives"][s] if "positives" in case.files else case["y"][s][:, None])
        assert (negatives_of_draws(torch.tensor(case["draws"][s]), excluded).numpy() == case["negatives"][s]).all()


@pytest.mark.parametrize("block", [1, 7, 10**6])
@pytest.mark.parametrize("path", cases("cma_positives"), ids=lambda p: p.stem)
def test_positives_are_found_in_blocks(path, block, monkeypatch):
    case = np.load(path)
    monkeypatch.setattr("hf_ssl.models.memory_avid._SIMILARITIES", block * len(case["video_memory"]))
    memories = torch.tensor(case["video_memory"]), torch.tensor(case["audio_memory"])
    for agreement in ("consensus", "union", "video", "audio"):
        found = cma_positives(*memories, case["pos_k"].item(), agreement)
        assert (found.numpy() == case[f"positives_{agreement}"]).all()


def test_nce_does_not_overflow():
    scores = torch.tensor([[1 / 0.01, -1 / 0.01]], dtype=torch.float16, requires_grad=True)
    loss = nce_loss(scores[:, :1], scores, 1e-6)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and scores.grad.isfinite().all()


def test_scores_are_the_same_however_they_are_made(monkeypatch):
    z, memory = F.normalize(torch.randn(3, 8), dim=1), F.normalize(torch.randn(50, 8), dim=1)
    rows = torch.randint(50, (3, 5))
    whole = memory_scores(z, memory, rows, 0.07)
    monkeypatch.setattr("hf_ssl.models.memory_avid._FULL_PRODUCT", 0)
    torch.testing.assert_close(memory_scores(z, memory, rows, 0.07), whole)


def test_published_sizes_and_shapes():
    def millions(module):
        return round(sum(p.numel() for p in module.parameters()) / 1e6, 2)

    with torch.device("meta"):
        model = AvidModel(AvidConfig())
        assert millions(model) == 21.29
        assert millions(model.video_tower) == 15.38 and millions(model.audio_tower) == 4.73
        assert millions(R2Plus1D(10)) == 7.02 and millions(R2Plus1D(34)) == 28.86
        frames, sound = torch.zeros(1, 8, 3, 224, 224), torch.zeros(1, 200, 257)
        output = model(frames, sound, output_hidden_states=True)
    assert output.video_embeds.shape == output.audio_embeds.shape == (1, 128)
    assert [tuple(x.shape[1:]) for x in output.video_hidden_states] == [
        (64, 8, 56, 56),
        (128, 4, 28, 28),
        (256, 2, 14, 14),
        (512, 1, 7, 7),
    ]
    assert [tuple(x.shape[1:]) for x in output.audio_hidden_states] == [
        (64, 50, 65),
        (128, 25, 33),
        (256, 13, 17),
        (512, 13, 17),
    ]


def test_layers_start_as_torchs():
    torch.manual_seed(0)
    model = AvidModel(AvidConfig(video_backbone="r2plus1d_10"))
    for layer in (
        model.video_tower.backbone.stem[0],
        model.audio_tower.backbone.stages[3][0],
        model.video_projector[0],
    ):
        weight, bound = layer.weight, 1 / math.sqrt(layer.weight[0].numel())
        assert weight.abs().max() <= bound and weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_a_timm_model_sees_frame_by_frame():
    model = AvidModel(tiny(frame_pooling="max")).eval()
    given = inputs()
    output = model(given["pixel_values_videos"])
    single = torch.stack(
        [model(frame[:, None]).video_pooler_output for frame in given["pixel_values_videos"].unbind(1)]
    )
    torch.testing.assert_close(output.video_pooler_output, single.amax(0))
    assert output.audio_embeds is None
    with pytest.raises(ValueError, match="pixel_values_videos, input_values, or both"):
        model()


def test_memories_move_only_after_a_training_step_and_the_last_clip_of_an_instance_counts():
    torch.manual_seed(0)
    model = AvidForPreTraining(tiny(memory_momentum=0.0))
    given = inputs()
    given["indices"] = torch.tensor([5, 7, 5, 9])
    before = model.video_memory.clone()
    model.eval()
    assert model(**given).loss.isfinite()
    model.train()
    embeddings = model(**given).embeddings.detach()
    torch.testing.assert_close(model.video_memory, before, rtol=0, atol=0)
    model.after_step(0, 1, 1)
    torch.testing.assert_close(model.video_memory[[7, 5, 9]], embeddings[1:, 0])
    torch.testing.assert_close(model.audio_memory[[7, 5, 9]], embeddings[1:, 1])
    assert (model.video_memory != before).any(1).sum() == 3


def test_a_copy_of_the_model_has_a_memory_of_its_own():
    model = AvidForPreTraining(tiny()).train()
    before, other = model.video_memory.clone(), copy.deepcopy(model).to(torch.float64)
    other(**{key: x.double() if x.is_floating_point() else x for key, x in inputs().items()})
    other.after_step(0, 1, 1)
    assert torch.equal(model.video_memory, before)
    assert (other.video_memory != before).any(1).sum() == 4


def test_a_loop_without_hooks_is_told(monkeypatch):
    monkeypatch.setattr("hf_ssl.models.memory_avid._UNREMEMBERED", 2)
    model = AvidForPreTraining(tiny()).train()
    model(**inputs())
    model(**inputs())
    with pytest.raises(RuntimeError, match="after_step"):
        model(**inputs())


def test_two_micro_batches_are_one_batch():
    """With norms in evaluation mode, because accumulation changes BatchNorm's batches in every method."""
    given = inputs(8)
    results = []
    for parts in (1, 2):
        torch.manual_seed(0)
        model = AvidForPreTraining(tiny()).double()
        model.normalizer.fill_(2.0)
        for module in model.modules():
            if "BatchNorm" in type(module).__name__:
                module.eval()
        model.before_step(0, 1, 1)
        # Each micro-batch draws its own negatives, so give both the same ones.
        model.memory.draw_negatives = lambda own, positives: (own + torch.arange(1, 17)) % 40
        losses = []
        for part in range(parts):
            micro = {key: value.chunk(parts)[part] for key, value in given.items()}
            micro = {key: value.double() if value.is_floating_point() else value for key, value in micro.items()}
            losses.append(model(**micro).loss)
            (losses[-1] / parts).backward()
        model.after_step(0, 1, 1)
        gradient = model.encoder.video_projector[0].weight.grad
        results.append((torch.stack(losses).mean().detach(), gradient, model.video_memory))
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(two, one)


@pytest.mark.parametrize("exclude_anchor", [False, True])
def test_cma_draws_no_positives_and_no_anchor_if_asked(exclude_anchor):
    model = AvidForPreTraining(tiny(cma=True, num_positives=30, exclude_anchor=exclude_anchor, num_negatives=400))
    model.before_step(0, 1, 1)
    own = torch.arange(40)[:, None]
    positives = model.positive_set.long()
    negatives = model.memory.draw_negatives(own, positives)
    assert not (negatives[:, :, None] == positives[:, None]).any()
    assert (negatives == own).any() == (not exclude_anchor)
    assert (negatives.max(), negatives.min()) == (39, 0)


def test_positive_sets_are_found_anew_when_it_is_time():
    model = AvidForPreTraining(tiny(cma=True, num_positives=3, positives_every_epochs=2))
    found = []
    for now in range(9):
        model.before_step(now, 9, 2)
        found.append(model.positive_set.clone())
        for memory in (model.video_memory, model.audio_memory):
            memory.copy_(F.normalize(torch.randn_like(memory), dim=1))
    changed = [now for now in range(1, 9) if (found[now] != found[now - 1]).any()]
    assert changed == [4, 8]


def test_cma_without_positive_sets_is_refused():
    """Without the hooks, rows of -1 would be read as the last instance."""
    model = AvidForPreTraining(tiny(cma=True, num_positives=3))
    with pytest.raises(ValueError, match="before_step"):
        model(**inputs())
    model.memory.find_positives()
    assert model(**inputs()).loss.isfinite()


@pytest.mark.parametrize("partition", ["shared", "per_term"])
def test_normalizers(partition):
    torch.manual_seed(0)
    model = AvidForPreTraining(tiny(cma=True, num_positives=3, partition=partition, within_coeff=1.0))
    model.before_step(0, 1, 1)
    model(**inputs())
    first = model.normalizer.clone()
    assert (first > 0).tolist() == [True, *[partition == "per_term"] * 2]
    model(**inputs(seed=1))
    assert (model.normalizer == first).all()
    assert {"z", "loss_cross", "loss_within", "loss_within_positive"} <= set(model.metrics())


def test_draws_follow_the_seed_and_the_step():
    torch.manual_seed(0)
    model, other = AvidForPreTraining(tiny()), AvidForPreTraining(tiny())
    own = torch.arange(4)[:, None]

    def draw(model, step):
        model.before_step(step, 9, 2)
        return [model.memory.draw_negatives(own, None) for _ in range(2)]

    a, again, later, different = draw(model, 3), draw(model, 3), draw(model, 4), draw(other, 3)
    assert all((x == y).all() for x, y in zip(a, again, strict=True))
    assert (a[0] != a[1]).any() and (a[0] != later[0]).any() and (a[0] != different[0]).any()


def test_half_precision_memory():
    model = AvidForPreTraining(tiny(memory_dtype="bfloat16"))
    assert model.video_memory.dtype == torch.bfloat16
    loss = model(**inputs()).loss
    model.after_step(0, 1, 1)
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert model.video_memory.float().norm(dim=1).sub(1).abs().max() < 0.01


def test_saved_without_memories_and_loaded_by_every_class(tmp_path):
    torch.manual_seed(0)
    model = AvidForPreTraining(tiny()).eval()
    shared = AvidForPreTraining(model.export_parts()[0])
    shared.load_state_dict({k: v for k, v in model.state_dict().items() if k in shared.state_dict()})
    shared.save_pretrained(tmp_path)
    assert not [name for name in shared.state_dict() if "memory" in name]
    given = inputs()
    with torch.no_grad():
        expected = model.encoder(given["pixel_values_videos"], given["input_values"])
        encoder, info = AvidModel.from_pretrained(tmp_path, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        output = encoder(given["pixel_values_videos"], given["input_values"])
        torch.testing.assert_close(output.video_embeds, expected.video_embeds)
        torch.testing.assert_close(output.audio_embeds, expected.audio_embeds)
        for cls, key in (
            (AvidForVideoClassification, "pixel_values_videos"),
            (AvidForAudioClassification, "input_values"),
        ):
            classifier, info = cls.from_pretrained(tmp_path, num_labels=3, output_loading_info=True)
            assert info["missing_keys"] == {"classifier.weight", "classifier.bias"} and not info["unexpected_keys"]
            modality = classifier.modality
            features = classifier.encoder(**{key: given[key]})[f"{modality}_pooler_output"]
            torch.testing.assert_close(features, expected[f"{modality}_pooler_output"])
            assert classifier(given[key], labels=torch.tensor([0, 1, 2, 0])).loss.isfinite()
    with pytest.raises(ValueError, match="num_instances"):
        shared(**given)
    assert set(json.loads((tmp_path / "config.json").read_text())["auto_map"]) == {
        "AutoConfig",
        *AvidModel.auto_classes,
    }


@pytest.mark.parametrize(
    "change, said",
    [
        ({"video_backbone": "r2plus1d_50"}, "r2plus1d_10, r2plus1d_18, r2plus1d_34"),
        ({"audio_backbone": "resnt18"}, "resnet18"),
        ({"partition": "own"}, "shared or per_term"),
        ({"num_bands": 100}, "n_fft=64"),
        ({"audio_mean": [1.0, 2.0]}, "num_bands=33"),
        ({"cross_coeff": 0.0}, "At least one coefficient"),
        ({"num_instances": 1}, "leaves no negatives"),
        ({"cma": True, "num_positives": 40}, "leaves no negatives"),
    ],
)
def test_impossible_configurations(change, said):
    with pytest.raises(Exception, match=said):
        AvidForPreTraining(tiny(**change))


def test_checkpointing_changes_nothing():
    results = []
    for enable in (False, True):
        torch.manual_seed(0)
        model = AvidForPreTraining(tiny(video_backbone="r2plus1d_10", audio_backbone="conv2d_10"))
        if enable:
            model.encoder.gradient_checkpointing = True
        loss = model(**inputs()).loss
        loss.backward()
        stats = {name: buffer.clone() for name, buffer in model.named_buffers() if "running" in name}
        results.append((loss.detach(), model.encoder.video_tower.backbone.stages[0][0].spatial1.weight.grad, stats))
    for plain, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(recomputed, plain)


def test_random_numbers_are_those_of_splitmix64_and_uniform():
    def splitmix64(state: int) -> int:
        z = state % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    golden = 0x9E3779B97F4A7C15
    counters = torch.arange(1000)
    for key in (0, 5, 2**70 + 3):
        expected = [(splitmix64((key + c + 1) * golden) & 2**63 - 1) % 97 for c in range(1000)]
        assert random_numbers(counters, key, 97).tolist() == expected
    counts = random_numbers(torch.arange(100_000), 7, 50).bincount(minlength=50).double()
    assert ((counts - 2000).square() / 2000).sum() < 86, "chi-squared with 49 degrees of freedom, once in a thousand"


@pytest.mark.parametrize("published", [False, True])
def test_segments_tell_what_came_first(published):
    networks = {"video_backbone": "r2plus1d_10", "audio_backbone": "conv2d_10"} if published else {}
    torch.manual_seed(0)
    frames, sound = torch.randn(2, 16, 3, 32, 32), torch.randn(2, 128, 33)
    for segments in (1, 2):
        model = AvidModel(tiny(**networks, num_frames=16, time_segments=segments)).eval()
        with torch.no_grad():
            found, reverse = model(frames, sound), model(frames.flip(1), sound.flip(1))
        assert found.video_pooler_output.shape[1] == segments * model.video_tower.backbone.num_features
        assert found.audio_pooler_output.shape[1] == segments * model.audio_tower.backbone.num_features
        if not published:  # applied to single frames
            apart = (found.video_pooler_output - reverse.video_pooler_output).abs().max() > 1e-3
            assert apart == (segments == 2)
            halves = reverse.video_pooler_output.unflatten(1, (segments, -1)).flip(1).flatten(1)
            torch.testing.assert_close(found.video_pooler_output, halves, rtol=1e-4, atol=1e-5)
    with pytest.raises(Exception, match="at most 2, to which r2plus1d_10 reduces 16 frames"):
        AvidConfig(video_backbone="r2plus1d_10", num_frames=16, time_segments=3)
    with pytest.raises(ValueError, match="ends with a feature map"):
        AvidModel(tiny(audio_backbone="test_vit", time_segments=2))(input_values=torch.randn(1, 160, 160))
