# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Model classes: outputs, loading, initialization, hooks, padding, stems, checkpointing."""

import copy
import json
import math
import re

import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState, GradientState
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, AutoModelForPreTraining

from hf_ssl import models
from hf_ssl.models import METHODS as ALL_METHODS
from hf_ssl.models import swav_loss
from hf_ssl.models.backbones_ssl import backbone_blocks
from hf_ssl.models.modeling_swav import Queue
from hf_ssl.training.pretrain import pretrain
from tests.conftest import digit_dataset
from tests.methods import PREFIXES, TINY, WIDTH, few_steps
from tests.methods import fields as tiny


METHODS = {name: classes for name, classes in ALL_METHODS.items() if name != "avid"}  # for AVID see test_avid.py
BACKBONES = ["test_resnet", "test_byobnet", "test_convnext", "test_efficientnet", "test_nfnet", "test_vit"]
BACKBONES += ["resnet10t", "regnety_002"]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def config(method: str, **fields):
    return METHODS[method][0](**tiny(method, **fields))


def build(method: str, kind: str = "ForPreTraining", **fields):
    return getattr(models, PREFIXES[method] + kind)(config(method, **fields))


def views(count: int = 2, size: int = 32, batch: int = 4) -> torch.Tensor:
    return torch.randn(batch, count, 3, size, size)


def step(model, optimizer, inputs: dict, number: int, num_steps: int = 10, steps_per_epoch: int = 2):
    """One step as in the training loop."""
    now = (number, num_steps, steps_per_epoch)
    model.before_step(*now)
    output = model(**inputs)
    output.loss.backward()
    model.before_optimizer_step(*now)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    model.after_step(*now)
    return output


def learner(model, **options) -> torch.optim.SGD:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01, **options)


def trained_a_little(method: str, **fields):
    """A model whose weights and BatchNorm statistics differ from a fresh one."""
    model = build(method, **fields).train()
    optimizer = learner(model)
    for number in range(2):
        step(model, optimizer, {"pixel_values": views()}, number)
    return model.eval()


def assert_same_tensors(ours: nn.Module, theirs: nn.Module) -> None:
    a, b = ours.state_dict(), theirs.state_dict()
    assert a.keys() == b.keys()
    assert not [name for name in a if not torch.equal(a[name], b[name])]


def frozen(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def norms(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


# ---------------------------------------------------------------------------------------------- outputs


@pytest.mark.parametrize("backbone", BACKBONES)
def test_any_timm_backbone_works_in_the_three_classes_of_a_method(backbone):
    images = views(count=1, size=64)[:, 0]
    encoder = build("swav", "Model", backbone=backbone).eval()
    with torch.no_grad():
        output, plain = encoder(images, output_hidden_states=True), encoder(images)
        classified = build("swav", "ForImageClassification", backbone=backbone, num_labels=7)(
            images, labels=torch.zeros(4, dtype=torch.long), output_hidden_states=True
        )
        whole = build("swav", backbone=backbone)(views(size=64), local_pixel_values=views(3))
    assert output.pooler_output.shape == (4, encoder.num_features)
    assert output.last_hidden_state.shape[0] == 4
    assert output.last_hidden_state.ndim == (3 if backbone == "test_vit" else 4)
    assert len(output.hidden_states) >= 4 and all(state.ndim == 4 for state in output.hidden_states)
    assert plain.hidden_states is None
    assert torch.equal(plain.last_hidden_state, output.last_hidden_state)
    assert torch.equal(plain.pooler_output, output.pooler_output)
    assert classified.logits.shape == (4, 7) and classified.loss.shape == ()
    assert len(classified.hidden_states) == len(output.hidden_states)
    assert whole.loss.isfinite() and whole.embeddings.shape == (4, 5, WIDTH)
    assert whole.features.shape == (4, 2, encoder.num_features)


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_loss_first_then_embeddings_and_detached_features(method, backbone):
    model = build(method, backbone=backbone).train()
    output = model(views())
    assert list(output)[:3] == ["loss", "embeddings", "features"]
    assert output.loss.shape == () and output.loss.requires_grad
    assert output.embeddings.shape == (4, 2, WIDTH) and output.embeddings.requires_grad
    assert output.features.shape == (4, 2, model.encoder.num_features) and not output.features.requires_grad
    assert len(model(views(), return_dict=False)) == len(output)


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_reaches_every_parameter_that_is_not_frozen(method):
    model = build(method, zero_init_residual=False).train()
    model(views()).loss.backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is None} == frozen(model)


@pytest.mark.parametrize("method", METHODS)
def test_embeddings_and_features_keep_the_order_of_the_views(method):
    model = build(method).eval()
    pixel_values = views()
    with torch.no_grad():
        both = model(pixel_values)
        for v in range(2):
            alone = model(pixel_values[:, v])
            assert alone.loss is None
            assert torch.allclose(both.embeddings[:, v], alone.embeddings[:, 0], atol=1e-6)
            assert torch.allclose(both.features[:, v], alone.features[:, 0], atol=1e-6)
            pooled = model.encoder(pixel_values[:, v]).pooler_output
            assert torch.allclose(both.features[:, v], pooled, atol=1e-6)


@pytest.mark.parametrize("method", ["barlow_twins", "byol", "simsiam"])
def test_methods_of_pairs_refuse_a_third_view(method):
    with pytest.raises(ValueError, match="compares two views of an image, not 3"):
        build(method)(views(3))


def test_swav_names_the_views_that_its_codes_need():
    with pytest.raises(ValueError, match=r"crops_for_assign=\[0, 2\] needs more than 2 views"):
        build("swav", crops_for_assign=[0, 2])(views())


@pytest.mark.parametrize("method", METHODS)
def test_losses_are_single_precision_under_autocast(method):
    model = build(method, temperature=0.1) if method == "swav" else build(method)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model.train()(views())
    assert output.loss.dtype == torch.float32 and output.loss.isfinite()
    if method == "swav":
        assert output.embeddings.dtype == output.logits.dtype == output.codes.dtype == torch.float32
        again = swav_loss(output.logits.transpose(0, 1), output.codes.transpose(0, 1))
        assert torch.equal(output.loss, again)
    else:
        assert output.embeddings.dtype == torch.bfloat16  # autocast is on


def test_the_classifier_knows_the_problem_types_of_transformers():
    images, classes = views(count=1)[:, 0], torch.tensor([0, 1, 2, 0])
    model = build("byol", "ForImageClassification", num_labels=3).eval()
    output = model(images, labels=classes)
    assert torch.allclose(output.loss, F.cross_entropy(output.logits, classes))
    # Trainer passes the label count of all accumulated batches and does not divide the loss again.
    shared = model(images, labels=classes, num_items_in_batch=torch.tensor(8))
    assert torch.allclose(shared.loss, output.loss / 2)
    several = build("byol", "ForImageClassification", num_labels=3, problem_type="multi_label_classification").eval()
    output, targets = several(images, labels=F.one_hot(classes, 3).float()), F.one_hot(classes, 3).float()
    assert torch.allclose(output.loss, F.binary_cross_entropy_with_logits(output.logits, targets))


# ---------------------------------------------------------------------------------------------- saving and loading


@pytest.mark.parametrize("method", METHODS)
def test_saved_and_loaded_by_the_auto_classes_every_tensor_is_equal(method, tmp_path):
    model = trained_a_little(method)
    model.save_pretrained(tmp_path)
    assert all(norm.running_mean.any() for norm in norms(model.encoder))

    whole, info = AutoModelForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert type(whole) is type(model) and not whole.training
    assert_same_tensors(whole, model)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    pixel_values = views()
    with torch.no_grad():
        assert torch.allclose(whole(pixel_values).loss, model(pixel_values).loss, rtol=1e-5)

    encoder, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(encoder) is type(model.encoder)
    assert_same_tensors(encoder, model.encoder)
    assert not info["missing_keys"] and not info["unexpected_keys"]

    classifier, info = AutoModelForImageClassification.from_pretrained(
        tmp_path, num_labels=7, output_loading_info=True
    )
    assert type(classifier) is getattr(models, f"{PREFIXES[method]}ForImageClassification")
    assert_same_tensors(classifier.encoder, model.encoder)
    assert set(info["missing_keys"]) == {"classifier.weight", "classifier.bias"} and not info["unexpected_keys"]
    assert type(AutoConfig.from_pretrained(tmp_path)) is type(model.config)


@pytest.mark.parametrize("method", METHODS)
def test_pretraining_continues_from_an_encoder_alone(method, tmp_path):
    trained = trained_a_little(method)
    trained.encoder.save_pretrained(tmp_path)
    model = AutoModelForPreTraining.from_pretrained(tmp_path)
    assert_same_tensors(model.encoder, trained.encoder)
    step(model.train(), learner(model), {"pixel_values": views()}, 0)


WITH_TARGETS = [("byol", {}), ("simsiam", {"target_update": "epoch"})]


def assert_target_is_online(model) -> None:
    parameters = dict(model.named_parameters())
    targets = [name for name in parameters if name.startswith("target_")]
    assert targets
    different = [n for n in targets if not torch.equal(parameters[n], parameters[n.removeprefix("target_")])]
    assert not different


@pytest.mark.parametrize(("method", "fields"), WITH_TARGETS)
def test_a_target_starts_as_a_copy_of_the_online_network(method, fields):
    assert_target_is_online(build(method, **fields))


def test_a_target_without_an_online_module_is_refused_by_its_name():
    class Misnamed(models.SimSiamForPreTraining):
        def __init__(self, config):
            super().__init__(config)
            self.target_head = torch.nn.Linear(2, 2)

    with pytest.raises(ValueError, match="target_head.bias has no online parameter head.bias"):
        Misnamed(build("simsiam").config).copy_to_targets()


@pytest.mark.parametrize(("method", "fields"), WITH_TARGETS)
def test_a_target_that_a_checkpoint_lacks_is_copied_from_the_online_weights(method, fields, tmp_path):
    trained = trained_a_little(method, **fields)
    online = {name: tensor for name, tensor in trained.state_dict().items() if not name.startswith("target_")}
    trained.save_pretrained(tmp_path, state_dict=online)
    model = AutoModelForPreTraining.from_pretrained(tmp_path)
    assert_same_tensors(model.projector, trained.projector)
    assert_target_is_online(model)


@pytest.mark.parametrize(("method", "fields"), [*WITH_TARGETS, ("simsiam", {}), ("simsiam", {"output_affine": True})])
def test_what_is_frozen_is_frozen_after_loading_too(method, fields, tmp_path):
    model = build(method, **fields)
    expected = {name for name, _ in model.named_parameters() if name.startswith("target_")}
    if method == "simsiam" and not model.config.output_affine:
        expected.add("projector.6.bias")
    assert frozen(model) == expected
    model.save_pretrained(tmp_path)
    assert frozen(AutoModelForPreTraining.from_pretrained(tmp_path)) == expected


# ---------------------------------------------------------------------------------------------- configurations


@pytest.mark.parametrize("method", METHODS)
def test_a_configuration_survives_json(method):
    first = config(
        method, backbone="regnety_002", backbone_args={"drop_path_rate": 0.1}, image_mean=[0.5] * 3, num_labels=4
    )
    again = AutoConfig.for_model(**json.loads(first.to_json_string()))
    assert type(again) is type(first) and again.to_dict() == first.to_dict()
    defaults = METHODS[method][0]()
    assert json.loads(METHODS[method][0](**json.loads(defaults.to_json_string())).to_json_string()) == json.loads(
        defaults.to_json_string()
    )


@pytest.mark.parametrize(
    ("method", "fields", "message"),
    [
        ("byol", {"backbone": 50}, "backbone"),
        ("byol", {"stem": "tiny"}, "stem='tiny' is not valid; choose imagenet or small"),
        ("byol", {"padding": "valid"}, "padding='valid' is not valid; choose torch or same"),
        ("byol", {"interpolation": "nearest"}, "interpolation"),
        ("byol", {"image_size": 0}, "image_size"),
        ("byol", {"crop_pct": 1.5}, "crop_pct"),
        ("byol", {"num_channels": 1}, "num_channels=1 numbers"),
        ("byol", {"tau_base": 1.5}, "tau_base must be between 0 and 1"),
        ("byol", {"tau_schedule": "linear"}, "choose cosine or constant"),
        ("barlow_twins", {"projector_dims": []}, "projector_dims"),
        ("simsiam", {"projector_layers": 0}, "projector_layers must be at least 1"),
        ("simsiam", {"target_update": "never"}, "choose step or epoch"),
        ("swav", {"temperature": 0}, "temperature"),
        ("swav", {"crops_for_assign": []}, "crops_for_assign"),
        ("swav", {"num_prototypes": 1}, "num_prototypes"),
        ("swav", {"num_prototypes": [6, 1]}, "num_prototypes"),
        ("swav", {"num_prototypes": []}, "num_prototypes"),
        ("swav", {"queue_length": -1}, "queue_length"),
    ],
)
def test_an_impossible_configuration_is_refused_with_its_field(method, fields, message):
    with pytest.raises(StrictDataclassError, match=re.escape(message)):
        config(method, **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backbone": "resnet51"}, "timm has no backbone 'resnet51'; did you mean .*resnet50"),
        ({"backbone_args": {"wings": 2}}, "backbone_args do not fit test_resnet: .*wings"),
        ({"backbone_args": {"in_chans": 1}}, "backbone_args must not contain in_chans; use num_channels"),
        ({"backbone": "test_vit", "stem": "small"}, "stem='small' is for ResNets.* not for test_vit"),
    ],
)
def test_a_backbone_that_timm_cannot_build_is_refused_with_the_reason(fields, message):
    with pytest.raises(ValueError, match=message):
        build("byol", "Model", **fields)


def test_images_of_any_number_of_channels():
    model = build("barlow_twins", num_channels=5, image_mean=[0.5] * 5, image_std=[0.2] * 5).train()
    assert model(torch.randn(4, 2, 5, 32, 32)).loss.isfinite()


# ---------------------------------------------------------------------------------------------- initialization


def large(module: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
    """Layers with enough weights to estimate their standard deviation within a few percent."""
    layers = [m for m in module.modules() if isinstance(m, kind) and m.weight.numel() > 8000]
    assert layers
    return layers


@pytest.mark.parametrize("backbone", ["resnet10t", "regnety_002"])
def test_convolutions_start_as_torchvisions_with_the_fan_out_also_where_grouped(backbone):
    model = build("swav", "Model", backbone=backbone)
    for conv in large(model, nn.Conv2d):
        expected = math.sqrt(2 / (conv.weight[0, 0].numel() * conv.out_channels))
        assert conv.weight.std().item() == pytest.approx(expected, rel=0.05)
    for norm in norms(model):
        assert (norm.weight == 1).all() and not norm.bias.any()


def test_byol_starts_as_haiku_does_with_normals_cut_at_two_deviations():
    model = build("byol", backbone="resnet10t", projector_hidden=64, predictor_hidden=512)
    for layer in [*large(model.encoder, nn.Conv2d), *large(model.projector, nn.Linear), model.predictor[0]]:
        deviation = 1 / math.sqrt(layer.weight[0].numel())
        assert layer.weight.abs().max() <= 2 * deviation
        assert layer.weight.std().item() == pytest.approx(0.88 * deviation, rel=0.05)
    assert not model.projector[0].bias.any()


@pytest.mark.parametrize("backbone", ["test_vit", "test_convnext"])
@pytest.mark.parametrize("method", ["byol", "swav"])
def test_networks_without_batchnorm_start_as_timms(method, backbone):
    model = build(method, "Model", backbone=backbone)
    for linear in large(model, nn.Linear):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert not linear.bias.any()


@pytest.mark.parametrize("backbone", ["test_resnet", "resnet10t", "regnety_002"])
@pytest.mark.parametrize("zero", [True, False])
def test_residual_branches_start_at_zero_only_if_told(backbone, zero):
    model = build("byol", "Model", backbone=backbone, zero_init_residual=zero)
    at_zero = [norm for norm in norms(model) if not norm.weight.any()]
    assert len(at_zero) == (len(backbone_blocks(model.backbone)) if zero else 0)


def test_each_paper_starts_its_residual_branches_its_own_way():
    starts = {method: METHODS[method][0]().zero_init_residual for method in METHODS}
    assert starts == {"barlow_twins": True, "byol": False, "simsiam": True, "swav": False}


@pytest.mark.parametrize("method", ["barlow_twins", "simsiam", "swav"])
def test_linear_layers_of_heads_start_as_torchs(method):
    wide = {"barlow_twins": {"projector_dims": [256, 64]}, "swav": {"projector_dims": [256, 64]}}
    model = build(method, **wide.get(method, {"projector_hidden": 256, "projector_dim": 64}))
    for linear in large(model.projector, nn.Linear):
        bound = 1 / math.sqrt(linear.in_features)
        assert linear.weight.abs().max() <= bound
        assert linear.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
        if linear.bias is not None:
            assert 0 < linear.bias.abs().max() <= bound


def test_the_classifier_starts_as_in_linear_evaluation():
    classifier = build("swav", "ForImageClassification", num_labels=100).classifier
    assert classifier.weight.std().item() == pytest.approx(0.01, rel=0.05) and not classifier.bias.any()


def test_prototypes_start_on_the_unit_sphere():
    rows = build("swav").prototypes.weight.norm(dim=1)
    assert torch.allclose(rows, torch.ones_like(rows))


def test_biases_of_byols_heads():
    model = build("byol")
    assert [layer.bias is not None for layer in (model.projector[0], model.projector[3])] == [True, False]
    assert [layer.bias is not None for layer in (model.predictor[0], model.predictor[3])] == [True, False]
    model = build("byol", hidden_bias=False, output_bias=True)
    assert [layer.bias is not None for layer in (model.projector[0], model.projector[3])] == [False, True]


def test_simsiams_projector_ends_in_batchnorm_without_scale():
    projector = build("simsiam").projector
    kinds = [nn.Linear, nn.BatchNorm1d, nn.ReLU] * 2 + [nn.Linear, nn.BatchNorm1d]
    assert [type(layer) for layer in projector] == kinds
    assert projector[-1].weight is None and projector[0].bias is None
    affine = build("simsiam", projector_layers=2, output_affine=True).projector
    assert [type(layer) for layer in affine] == kinds[3:]
    assert affine[-1].weight is not None and affine[-2].bias is None


def millions(module: nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


def test_the_default_networks_have_the_published_sizes():
    with torch.device("meta"):
        whole = {method: pretraining(config_class()) for method, (config_class, pretraining) in METHODS.items()}
        scale = {"projector_dims": [8192, 8192, 256], "projector_batch_norm": False, "num_prototypes": 16000}
        seer = models.SwavForPreTraining(models.SwavConfig(backbone="regnety_2560", **scale))
        args = {"depth": 27, "w0": 1744, "wa": 620.83, "wm": 2.52, "group_size": 1010}
        seer_10b = models.SwavForPreTraining(models.SwavConfig(backbone="regnety_2560", backbone_args=args, **scale))
    for model in whole.values():
        assert millions(model.encoder) == pytest.approx(23.508, abs=5e-4)
    assert millions(whole["barlow_twins"].projector) == pytest.approx(151.028, abs=5e-4)
    assert millions(whole["byol"].projector) == pytest.approx(9.449, abs=5e-4)
    assert millions(whole["byol"].predictor) == pytest.approx(2.109, abs=5e-4)
    assert millions(whole["simsiam"].projector) == pytest.approx(12.593, abs=5e-4)
    assert millions(whole["simsiam"].predictor) == pytest.approx(2.100, abs=5e-4)
    assert millions(whole["swav"].projector) == pytest.approx(4.463, abs=5e-4)
    assert millions(whole["swav"].prototypes) == pytest.approx(0.384, abs=5e-4)
    assert millions(seer.encoder) == pytest.approx(1272.16, abs=5e-3)
    assert millions(seer) == pytest.approx(1431.03, abs=5e-3)
    assert millions(seer_10b.encoder) == pytest.approx(9323.93, abs=5e-3)


@pytest.mark.parametrize("backbone", ["test_resnet", "test_nfnet", "test_convnext", "test_vit", "test_vit_relpos"])
@pytest.mark.parametrize("method", ["byol", "swav"])
def test_built_without_memory_and_then_initialized_no_tensor_keeps_what_memory_held(method, backbone):
    fields = {"backbone": backbone, "zero_init_residual": True}
    if method == "swav":
        fields["queue_length"] = 8
    expected = build(method, **fields)
    with torch.device("meta"):
        model = build(method, **fields)
    model.to_empty(device="cpu")
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data.fill_(7)
    model.init_weights()
    for (name, ours), (_, theirs) in zip(model.state_dict().items(), expected.state_dict().items(), strict=True):
        if theirs.unique().numel() == 1:  # a constant: scale, offset, statistics
            assert torch.equal(ours, theirs), name
        else:
            assert ours.abs().max() < 7 and ours.std() < 2 * theirs.std() + 1e-6, name


# ---------------------------------------------------------------------------------------------- BatchNorm batches


@pytest.mark.parametrize(
    ("method", "local", "backbone", "head"),
    [
        ("barlow_twins", False, 2, 2),
        ("byol", False, 2, 2),
        ("simsiam", False, 2, 2),
        ("swav", False, 1, 1),
        ("swav", True, 2, 1),
    ],
)
def test_which_crops_share_a_batchnorm_batch_is_that_of_the_method(method, local, backbone, head):
    model = build(method).train()
    model(views(), local_pixel_values=views(3, size=16) if local else None)
    assert {norm.num_batches_tracked.item() for norm in norms(model.encoder)} == {backbone}
    heads = [norm for name, child in model.named_children() if "encoder" not in name for norm in norms(child)]
    assert {norm.num_batches_tracked.item() for norm in heads} == {head}
    model.eval()(views())
    assert {norm.num_batches_tracked.item() for norm in heads} == {head}


def test_swav_passes_crops_of_one_size_together_and_all_crops_through_the_head():
    model = build("swav").train()
    seen = []
    model.encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model.projector.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    pixel_values, local = views(), views(3, size=16)
    output = model(pixel_values, local)
    assert [tuple(x.shape) for x in seen] == [(8, 3, 32, 32), (12, 3, 16, 16), (20, model.encoder.num_features)]
    assert torch.equal(seen[0], torch.cat([pixel_values[:, 0], pixel_values[:, 1]]))
    assert torch.equal(seen[1], torch.cat([local[:, v] for v in range(3)]))
    assert output.logits.shape == (4, 5, 6) and output.codes.shape == (4, 2, 6)
    assert torch.equal(output.features[:, 1], seen[2][4:8])


# ---------------------------------------------------------------------------------------------- BYOL


def test_byols_target_keeps_its_own_batchnorm_statistics():
    model = build("byol", zero_init_residual=False, tau_base=0.5).train()
    optimizer = learner(model)
    step(model, optimizer, {"pixel_values": views()}, 0)
    pixel_values = views()
    alone = copy.deepcopy(model.target_encoder)
    assert alone.training
    for v in range(2):
        alone(pixel_values[:, v])
    step(model, optimizer, {"pixel_values": pixel_values}, 1)
    buffers, online = dict(model.target_encoder.named_buffers()), dict(model.encoder.named_buffers())
    for name, buffer in alone.named_buffers():
        assert torch.allclose(buffers[name], buffer, atol=1e-6), name
    assert not torch.allclose(buffers["backbone.bn1.running_mean"], online["backbone.bn1.running_mean"], atol=1e-4)


def test_byols_target_is_averaged_only_after_the_step():
    model = build("byol", tau_base=0.9, tau_schedule="constant").train()
    before = copy.deepcopy(model.state_dict())
    step(model, learner(model), {"pixel_values": views()}, 0)
    after = model.state_dict()
    for name, _ in model.named_parameters():
        if name.startswith("target_"):
            expected = 0.9 * before[name] + 0.1 * after[name.removeprefix("target_")]
            assert torch.allclose(after[name], expected, atol=1e-7), name
    assert model.metrics() == {"tau": 0.9}


def test_the_training_loop_averages_the_updated_weights(tmp_path):
    """With a momentum of 0, the target ends equal to the online network, unless updated before the optimizer step."""
    overrides = [f"model.{name}={value}" for name, value in TINY["byol"].items()]
    overrides += ["model.tau_base=0", "model.tau_schedule=constant", "monitor.every=0"]
    pretrain(few_steps("byol", tmp_path / "run", *overrides), dataset=digit_dataset(0, 32))
    AcceleratorState._reset_state()  # otherwise later tests in this process cannot choose a precision
    GradientState._reset_state()
    weights = load_file(tmp_path / "run/checkpoints/step_00000002/model.safetensors")
    target = build("byol")
    target.load_state_dict(weights)
    assert_target_is_online(target)


# ---------------------------------------------------------------------------------------------- SimSiam


def test_simsiam_is_one_network():
    model = build("simsiam")
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    assert not [name for name in names if "target" in name]
    assert len({id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False)}) == len(names)
    before = copy.deepcopy(model.state_dict())
    model.after_step(1, 10, 2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_simsiam_with_a_target_copies_it_at_the_end_of_an_epoch_only():
    model = build("simsiam", target_update="epoch").train()
    optimizer = learner(model)
    first = copy.deepcopy(dict(model.named_parameters()))
    step(model, optimizer, {"pixel_values": views()}, 0, steps_per_epoch=2)
    assert all(torch.equal(p, first[n]) for n, p in model.named_parameters() if n.startswith("target_"))
    assert not torch.equal(model.projector[0].weight, first["projector.0.weight"])
    step(model, optimizer, {"pixel_values": views()}, 1, steps_per_epoch=2)
    assert_target_is_online(model)


# ---------------------------------------------------------------------------------------------- SwAV


def test_prototypes_are_normalized_before_every_step():
    model = build("swav").train()
    optimizer = learner(model)
    step(model, optimizer, {"pixel_values": views()}, 0)
    assert not torch.allclose(model.prototypes.weight.norm(dim=1), torch.ones(6), atol=1e-5)
    model.before_step(1, 10, 2)
    assert torch.allclose(model.prototypes.weight.norm(dim=1), torch.ones(6))


@pytest.mark.parametrize("bias", [False, True])
def test_frozen_prototypes_get_neither_gradient_nor_momentum_nor_decay(bias):
    model = build("swav", freeze_prototypes_steps=2, prototypes_bias=bias).train()
    optimizer = learner(model, momentum=0.9, weight_decay=0.1)
    weight = model.prototypes.weight
    model.before_step(0, 10, 2)
    start = weight.detach().clone()
    for number in range(2):
        step(model, optimizer, {"pixel_values": views()}, number)
        assert torch.allclose(weight, start, atol=1e-6)
        assert not any(optimizer.state[parameter] for parameter in model.prototypes.parameters())
    step(model, optimizer, {"pixel_values": views()}, 2)
    assert not torch.allclose(weight, start, atol=1e-4) and optimizer.state[weight]


def test_the_queue_starts_at_its_epoch_and_holds_the_newest_features_first():
    model = build("swav", queue_length=8, queue_start_epoch=1.0).train()
    optimizer = learner(model)
    outputs = []
    for number in range(4):
        if number <= 2:  # an epoch has two steps
            assert not model.queue.any()
        outputs.append(step(model, optimizer, {"pixel_values": views()}, number))
    for crop in range(2):
        newest_first = torch.cat([outputs[number].embeddings[:, crop] for number in (3, 2)])
        assert torch.allclose(model.queue[crop], newest_first.detach())
    full = model.queue.clone()
    model.eval()(views())
    assert torch.equal(model.queue, full)


def test_scores_of_the_queue_are_single_precision_under_autocast():
    model = build("swav", queue_length=8, queue_start_epoch=0).train()
    model.queue.copy_(F.normalize(torch.randn_like(model.queue), dim=2))
    queue, rows = model.queue.clone(), torch.randn(4, 6)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        scores = torch.cat([Queue(model.queue[0], len(rows)).scores(model.prototypes), rows])
    assert torch.allclose(scores, torch.cat([queue[0] @ model.prototypes.weight.T, rows]), atol=1e-6)


def test_the_queue_is_in_checkpoints_but_not_in_what_is_exported(tmp_path):
    model = build("swav", queue_length=8, queue_start_epoch=0).train()
    step(model, learner(model), {"pixel_values": views()}, 0)
    assert model.state_dict()["queue"].any()
    assert model.export_parts()[1].keys() == model.state_dict().keys() - {"queue"}
    model.save_pretrained(tmp_path, state_dict=model.export_parts()[1])
    loaded, info = AutoModelForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not loaded.queue.any() and not info["missing_keys"]
    assert torch.equal(loaded.prototypes.weight, model.prototypes.weight)


def test_a_queue_shorter_than_a_batch_is_refused():
    model = build("swav", queue_length=3, queue_start_epoch=0).train()
    model.before_step(0, 10, 2)
    with pytest.raises(ValueError, match="queue_length=3 must hold at least one global batch of 4"):
        model(views())


def test_swav_reports_how_its_prototypes_are_used():
    model = build("swav").eval()
    assert model.metrics() == {}
    model(views())
    metrics = model.metrics()
    assert 0 < metrics["assignment_entropy"] <= math.log(6) and 0 < metrics["prototypes_used"] <= 1


def test_several_matrices_of_prototypes_are_swav_on_each_and_the_loss_is_their_mean():
    fields = {"queue_length": 8, "queue_start_epoch": 0}
    whole = build("swav", num_prototypes=[6, 9, 6], **fields).train()
    singles = [build("swav", num_prototypes=count, **fields).train() for count in (6, 9, 6)]
    whole.queue.copy_(F.normalize(torch.randn_like(whole.queue), dim=2))
    for single, prototypes in zip(singles, whole.prototypes, strict=True):
        shared = {name: t for name, t in whole.state_dict().items() if not name.startswith("prototypes.")}
        single.load_state_dict(shared | {"prototypes.weight": prototypes.weight})
    inputs = {"pixel_values": views(), "local_pixel_values": views(3, size=16)}
    for model in (whole, *singles):
        model.before_step(0, 10, 2)
    output, outputs = whole(**inputs), [single(**inputs) for single in singles]
    assert torch.allclose(output.loss, torch.stack([o.loss for o in outputs]).mean())
    assert torch.allclose(output.codes, torch.cat([o.codes for o in outputs], -1))
    assert torch.allclose(whole.queue, singles[0].queue)
    output.loss.backward()
    torch.stack([o.loss for o in outputs]).mean().backward()
    theirs = sum(single.projector[0].weight.grad for single in singles)
    assert torch.allclose(whole.projector[0].weight.grad, theirs, atol=1e-6)
    for prototypes, single in zip(whole.prototypes, singles, strict=True):
        assert torch.allclose(prototypes.weight.grad, single.prototypes.weight.grad, atol=1e-7)
        assert torch.allclose(prototypes.weight.norm(dim=1), torch.ones(len(prototypes.weight)))
    assert 0 < whole.metrics()["assignment_entropy"] <= math.log(9) and 0 < whole.metrics()["prototypes_used"] <= 1
    frozen_ones = build("swav", num_prototypes=[6, 9], freeze_prototypes_steps=1).train()
    frozen_ones(views()).loss.backward()
    frozen_ones.before_optimizer_step(0, 10, 2)
    assert all(prototypes.weight.grad is None for prototypes in frozen_ones.prototypes)


def test_several_matrices_of_prototypes_are_exported(tmp_path):
    model = trained_a_little("swav", num_prototypes=(6, 9), queue_length=8, queue_start_epoch=0)
    model.save_pretrained(tmp_path, state_dict=model.export_parts()[1])
    loaded, info = AutoModelForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and loaded.config.num_prototypes == [6, 9]
    inputs = views()
    assert torch.equal(loaded.eval()(inputs).loss, model(inputs).loss)


# ---------------------------------------------------------------------------------------------- padding and stem


def pad_as_tensorflow(x: torch.Tensor, kernel: int, stride: int, value: float = 0.0) -> torch.Tensor:
    """Pad for ceil(n / stride) outputs, with the smaller half before and the larger half after."""
    pads = []
    for n in (x.shape[-1], x.shape[-2]):
        missing = max((math.ceil(n / stride) - 1) * stride + kernel - n, 0)
        pads += [missing // 2, missing - missing // 2]
    return F.pad(x, pads, value=value)


@pytest.mark.parametrize("size", [64, 63])
def test_same_padding_is_that_of_tensorflow(size):
    backbone = build("byol", "Model", backbone="resnet18", padding="same").backbone
    x = torch.randn(2, 3, size, size)
    stem = F.conv2d(pad_as_tensorflow(x, 7, 2), backbone.conv1.weight, stride=2)
    assert torch.allclose(backbone.conv1(x), stem, atol=1e-5)
    pooled = F.max_pool2d(pad_as_tensorflow(stem, 3, 2, -math.inf), 3, 2)
    assert torch.equal(backbone.maxpool(stem), pooled)
    strided = backbone.layer2[0].conv1
    expected = F.conv2d(pad_as_tensorflow(pooled, 3, 2), strided.weight, stride=2)
    assert torch.allclose(strided(pooled), expected, atol=1e-5)


def test_same_padding_changes_features_but_not_names_or_shapes_of_weights():
    torchs = build("byol", "Model", backbone="resnet10t").eval()
    same = build("byol", "Model", backbone="resnet10t", padding="same").eval()
    same.load_state_dict(torchs.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        ours, theirs = same(x).pooler_output, torchs(x).pooler_output
    assert ours.shape == theirs.shape and (ours - theirs).norm() > 0.01 * theirs.norm()


@pytest.mark.parametrize(("backbone", "side"), [("resnet18", 4), ("resnet10t", 4), ("regnety_002", 2)])
def test_the_small_stem_neither_strides_nor_pools(backbone, side):
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        small = build("simsiam", "Model", backbone=backbone, stem="small").eval()(x)
        usual = build("simsiam", "Model", backbone=backbone).eval()(x)
    assert small.last_hidden_state.shape[-2:] == (side, side)
    assert usual.last_hidden_state.shape[-2:] == (1, 1)


def test_the_small_stem_of_a_resnet_is_a_convolution_of_three_pixels():
    backbone = build("simsiam", "Model", backbone="resnet18", stem="small").backbone
    conv = backbone.conv1
    assert conv.kernel_size == (3, 3) and conv.stride == (1, 1) and conv.bias is None
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.05)
    assert isinstance(backbone.act1, nn.ReLU)
    linear = build("simsiam", "Model", backbone="resnet18", stem="small_linear").backbone
    assert isinstance(linear.act1, nn.Identity) and linear.conv1.stride == (1, 1)


# ---------------------------------------------------------------------------------------------- checkpointing


def gradients_and_statistics(model, inputs: dict) -> tuple[torch.Tensor, dict, dict]:
    torch.manual_seed(1)  # for drop path
    output = model(**inputs)
    value = output.loss if "loss" in output else output.pooler_output.square().sum()
    value.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return value.detach(), gradients, copy.deepcopy(dict(model.named_buffers()))


def assert_checkpointing_changes_nothing(model, inputs: dict) -> None:
    checkpointed = copy.deepcopy(model)
    getattr(checkpointed, "encoder", checkpointed).gradient_checkpointing = True
    calls = []
    block = backbone_blocks(checkpointed)[0]
    next(block.children()).register_forward_pre_hook(lambda *_: calls.append(1))
    value, gradients, statistics = gradients_and_statistics(model, inputs)
    again, gradients_again, statistics_again = gradients_and_statistics(checkpointed, inputs)
    assert len(calls) % 2 == 0 and calls  # called again in the backward pass
    assert torch.equal(value, again)
    assert gradients.keys() == gradients_again.keys()
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, gradients_again[name], rtol=1e-4, atol=1e-6 * gradient.abs().max()), name
    for name, statistic in statistics.items():
        assert torch.equal(statistic, statistics_again[name]), name


@pytest.mark.parametrize("backbone", ["test_resnet", "regnety_002", "test_convnext", "test_vit"])
def test_gradient_checkpointing_leaves_outputs_gradients_and_statistics(backbone):
    args = {"drop_path_rate": 0.3}
    model = build("swav", "Model", backbone=backbone, backbone_args=args).train()
    assert_checkpointing_changes_nothing(model, {"pixel_values": views(count=1)[:, 0]})


@pytest.mark.parametrize("method", METHODS)
def test_gradient_checkpointing_of_a_whole_method_leaves_its_loss(method):
    assert_checkpointing_changes_nothing(build(method).train(), {"pixel_values": views()})


def test_a_copy_of_a_checkpointed_model_runs_its_own_blocks():
    model = build("swav", "Model").train()
    model.gradient_checkpointing = True
    twin = copy.deepcopy(model)
    twin(views(count=1)[:, 0]).pooler_output.sum().backward()
    assert all(parameter.grad is not None for parameter in twin.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_gradient_checkpointing_is_switched_on_and_off_as_any_model_of_transformers():
    model = build("swav")
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"  # name by version
    assert not getattr(model, f"is_{name}_checkpointing")
    getattr(model, f"{name}_checkpointing_enable")()
    assert getattr(model, f"is_{name}_checkpointing") and model.encoder.gradient_checkpointing
    getattr(model, f"{name}_checkpointing_disable")()
    assert not getattr(model, f"is_{name}_checkpointing")
    assert not [block for block in backbone_blocks(model) if "forward" in block.__dict__]
