# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Stage 2: CPU and GPU colors against the published per-image arithmetic, on two photographs."""

import colorsys
import io
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from hf_ssl.data import photometric
from hf_ssl.data.images import ImageTransform
from hf_ssl.data.photometric import NEUTRAL, ORDERS, PARAMS, Photometric, color_maps, reference_photometric
from hf_ssl.data.views import resolve_views, sample_views
from hf_ssl.recipe import ViewsConfig, recipes_folder


@pytest.fixture(scope="module")
def crops() -> list[Image.Image]:
    """16 crops, resized to 48 pixels."""
    photos = [Image.fromarray(array) for array in load_sample_images().images]
    corners = np.random.default_rng(0).integers(0, 427 - 200, (16, 2)).tolist()
    boxes = [(left, top, left + 200, top + 200) for left, top in corners]
    return [photos[i % 2].crop(box).resize((48, 48)) for i, box in enumerate(boxes)]


def row(**changes: float) -> np.ndarray:
    params = NEUTRAL.copy()
    for name, value in changes.items():
        params[PARAMS.index(name)] = value
    return params


def pixels_of(images: list[Image.Image]) -> torch.Tensor:
    """(1, B, S, S, C), stacked like one view in the loader."""
    arrays = np.stack([np.asarray(image) for image in images])
    return torch.from_numpy(arrays[None] if arrays.ndim == 4 else arrays[None, ..., None])


def fast(images: list[Image.Image], rows: list[np.ndarray], arithmetic: str = "auto") -> np.ndarray:
    """(B, S, S, C) in 0..255; `arithmetic` "torch" runs the GPU arithmetic on a CPU."""
    channels = len(images[0].getbands())
    plain = Photometric([0.0] * channels, [1.0] * channels, arithmetic)
    out = plain(pixels_of(images)[0], torch.from_numpy(np.stack(rows)))
    return out.permute(0, 2, 3, 1).numpy() * 255


def reference(images: list[Image.Image], rows: list[np.ndarray]) -> np.ndarray:
    arrays = [np.asarray(reference_photometric(i, r), dtype=float) for i, r in zip(images, rows, strict=True)]
    return np.stack(arrays) if arrays[0].ndim == 3 else np.stack(arrays)[..., None]


both = pytest.mark.parametrize("arithmetic", ["auto", "torch"])


def same(params: np.ndarray) -> list[np.ndarray]:
    return [params] * 16


@both
@pytest.mark.parametrize(
    ("name", "values", "levels"),  # allowed mean distance, of 255 levels; Pillow truncates to 8 bits after each step
    [
        ("multiply", (0.2, 0.6, 1.4, 1.8), 0.5),
        ("add", (-0.4, -0.1, 0.3), 0.5),
        ("contrast", (0.2, 0.6, 1.4, 1.8), 0.6),
        ("saturation", (0.2, 0.6, 1.4, 1.8), 0.6),
        ("gray", (1,), 0.3),
        ("sigma", (0.1, 0.3, 0.5, 1, 1.5, 2), 1.5),  # Pillow's Gaussian is three box blurs
        ("threshold", (0.5,), 0.01),
    ],
)
def test_an_operation_alone_equals_pillows_up_to_rounding(crops, name, values, levels, arithmetic):
    for value in values:
        rows = same(row(**{name: value}))
        distance = np.abs(fast(crops, rows, arithmetic) - reference(crops, rows)).mean()
        assert distance < levels, (name, value)
        effect = np.abs(reference(crops, rows) - pixels_of(crops)[0].numpy()).mean()
        assert effect > 4 * distance or (name == "sigma" and value <= 0.3), "the comparison can see the operation"


@pytest.mark.parametrize("deepmind", [0, 1])
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("multiply", (0, 0.2, 0.6, 1.4, 1.8)),
        ("add", (-0.4, -0.1, 0.3)),
        ("contrast", (0, 0.2, 0.6, 1.4, 1.8)),
        ("saturation", (0, 0.2, 0.6, 1.4, 1.8)),
        ("gray", (1,)),
        ("threshold", (0, 0.3, 0.5, 1)),
    ],
)
def test_on_a_cpu_no_value_of_an_operation_is_more_than_two_levels_from_the_published_one(
    crops, name, values, deepmind
):
    for value in values:
        rows = same(row(**{name: value}, deepmind=deepmind))
        assert np.abs(fast(crops, rows) - reference(crops, rows)).max() < 2.01, value


@pytest.mark.parametrize("sigma", [0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.3, 1.6, 2, 3])
def test_on_a_cpu_the_blur_is_pillows(crops, sigma):
    photo = Image.fromarray(load_sample_images().images[0])
    large = [photo.crop((left, 100, left + 224, 324)) for left in (0, 150, 300)]
    for images in (crops, large):
        rows = [row(sigma=sigma)] * len(images)
        distance = np.abs(fast(images, rows) - reference(images, rows))
        inner = distance[:, 8:-8, 8:-8]  # Pillow handles edges in each of three passes, visible in small crops
        assert ((distance if images is large else inner) < 2.01).mean() > 0.99
        assert inner.max() < 4.01 and distance.mean() < 0.6


@pytest.mark.parametrize("hue", [-0.5, -0.2, -0.1, 0.1, 0.2, 0.5])
def test_on_a_cpu_the_hue_is_the_published_one(crops, hue):
    rows, exact = same(row(hue=hue)), same(row(hue=hue, deepmind=1))
    wanted = reference(crops, rows)
    distance = np.abs(fast(crops, rows) - wanted)
    assert distance.mean() < 0.5 and distance.max() < 9
    assert (distance < 2.01).mean() > 0.93  # 0.24 with an affine map; the rest are single hue levels of Pillow
    assert distance.mean() < 0.1 * np.abs(fast(crops, rows, "torch") - wanted).mean()
    assert np.abs(fast(crops, exact) - reference(crops, exact)).max() < 1.01


@both
@pytest.mark.parametrize("hue", [-0.2, -0.1, 0.1, 0.2])
def test_a_turn_about_gray_is_nearer_to_pillows_hue_than_no_or_the_opposite_turn(crops, hue, arithmetic):
    wanted = reference(crops, same(row(hue=hue)))
    distance = {h: np.abs(fast(crops, same(row(hue=h)), arithmetic) - wanted).mean() for h in (hue, 0, -hue)}
    assert distance[hue] < 0.85 * distance[0] < 0.85 * distance[-hue]


def test_a_third_of_a_turn_exchanges_the_pure_colors():
    colors = [Image.new("RGB", (4, 4), c) for c in ("red", "lime", "blue")]
    wanted = [[0, 255, 0], [0, 0, 255], [255, 0, 0]]
    assert np.allclose(fast(colors, [row(hue=1 / 3)] * 3, "torch")[:, 0, 0], wanted, atol=0.01)
    assert np.allclose(fast(colors, [row(hue=1 / 3, deepmind=1)] * 3)[:, 0, 0], wanted, atol=0.01)
    # Pillow has 255 hue levels; half of one changes a pure color by 3 levels.
    assert np.allclose(fast(colors, [row(hue=1 / 3)] * 3)[:, 0, 0], wanted, atol=3.01)


@pytest.mark.parametrize("order", range(24))
def test_one_map_is_the_four_jitter_operations_one_after_the_other_in_the_drawn_order(order):
    pixels = torch.rand(500, 3, generator=torch.Generator().manual_seed(order))
    changes = {"add": 0.2, "contrast": 0.5, "saturation": 1.6, "hue": 0.15}
    matrix, offset = color_maps(torch.from_numpy(row(**changes, order=order))[None], pixels.mean(0)[None])
    together = pixels @ matrix[0].T + offset[0]
    for op in ORDERS[order]:
        name = ("add", "contrast", "saturation", "hue")[op]
        matrix, offset = color_maps(torch.from_numpy(row(**{name: changes[name]}))[None], pixels.mean(0)[None])
        pixels = pixels @ matrix[0].T + offset[0]
    assert torch.allclose(together, pixels, atol=1e-5)


@both
def test_the_order_of_hue_and_saturation_is_seen(crops, arithmetic):
    for order in (ORDERS.index((0, 1, 2, 3)), ORDERS.index((3, 2, 1, 0))):
        rows = {o: same(row(saturation=0.1, hue=0.5, order=o)) for o in (order, 23 - order)}
        wanted = reference(crops, rows[order])
        right, wrong = (np.abs(fast(crops, r, arithmetic) - wanted).mean() for r in rows.values())
        assert right < 0.8 * wrong


@both
@pytest.mark.parametrize("preset", ["barlow_twins", "byol", "simsiam", "swav"])
def test_over_many_drawn_views_the_fast_colors_have_the_published_moments(crops, preset, arithmetic):
    view = resolve_views(ViewsConfig(preset=preset), preset)[1]
    drawn = [[d.params for d in sample_views([view] * 16, 48, 48, (0, 0, i))] for i in range(30)]
    ours = np.concatenate([fast(crops, rows, arithmetic) for rows in drawn])
    published = np.concatenate([reference(crops, rows) for rows in drawn])
    moments = {
        "mean": (lambda x: x.mean((0, 1, 2)), 4.0),
        "spread of all pixels": (lambda x: x.std(), 3.0),
        "contrast of an image": (lambda x: x.std((1, 2)).mean(), 2.5),
        "brightness of images": (lambda x: x.mean((1, 2, 3)).std(), 2.5),
        "colorfulness": (lambda x: (x.max(-1) - x.min(-1)).mean(), 3.0),
        "sharpness": (lambda x: np.abs(np.diff(x, axis=2)).mean(), 0.6),
        "share of black, in percent": (lambda x: 100 * (x < 2).mean(), 3.0),
        "share of white, in percent": (lambda x: 100 * (x > 253).mean(), 3.0),
    }
    for name, (moment, levels) in moments.items():
        assert np.abs(moment(ours) - moment(published)).max() < levels, name
    distance = np.abs(ours - published)
    assert distance.mean() < (7 if arithmetic == "torch" else 0.5), "image by image"
    assert arithmetic == "torch" or (distance < 2.01).mean() > 0.97


@pytest.mark.parametrize("preset", ["barlow_twins", "byol", "simsiam", "swav"])
def test_views_of_a_cpu_and_of_a_gpu_are_alike(crops, preset):
    view = resolve_views(ViewsConfig(preset=preset), preset)[1]
    drawn = [[d.params for d in sample_views([view] * 16, 48, 48, (0, 0, i))] for i in range(30)]
    distance = np.concatenate([np.abs(fast(crops, rows) - fast(crops, rows, "torch")) for rows in drawn])
    assert distance.mean() < 7
    neutral = same(NEUTRAL)
    assert np.allclose(fast(crops, neutral), fast(crops, neutral, "torch"), atol=1e-3)


def deepmind_by_hand(image: Image.Image, params: np.ndarray) -> np.ndarray:
    """Pixel by pixel with the standard library's HSV, in 0..255; rounded once at the end."""
    values = dict(zip(PARAMS, params.tolist(), strict=True))
    x = np.asarray(image) / 255
    for op in ORDERS[int(values["order"])]:
        if op == 0:
            x = x + values["add"]
        elif op == 1:
            mean = x.mean((0, 1))
            x = values["contrast"] * (x - mean) + mean
        else:
            hsv = np.array([[colorsys.rgb_to_hsv(*pixel) for pixel in line] for line in x])
            if op == 2:
                hsv[..., 1] = np.clip(hsv[..., 1] * values["saturation"], 0, 1)
            else:
                hsv[..., 0] = (hsv[..., 0] + values["hue"]) % 1
            x = np.array([[colorsys.hsv_to_rgb(*pixel) for pixel in line] for line in hsv])
        x = x.clip(0, 1)
    if values["gray"]:
        x = np.repeat((x @ [0.299, 0.587, 0.114])[..., None], 3, 2)
    return 255 * x


@pytest.mark.parametrize("order", range(0, 24, 5))
def test_byols_reference_has_deepminds_contrast_and_saturation(crops, order):
    small = [crop.resize((12, 12)) for crop in crops[:3]]
    for changes in (
        {"contrast": 0.6},
        {"contrast": 1.4},
        {"saturation": 0.8},
        {"saturation": 3.0},  # clipped at 1
        {"hue": 0.1},
        {"add": 0.3, "contrast": 1.4, "saturation": 1.2, "hue": -0.1},
        {"add": -0.2, "contrast": 0.7, "saturation": 0.8, "hue": 0.1, "gray": 1},
    ):
        params = row(**changes, order=order, deepmind=1)
        for image in small:
            ours = np.asarray(reference_photometric(image, params), dtype=float)
            assert np.abs(ours - deepmind_by_hand(image, params)).max() < 0.51
    assert np.array_equal(reference([small[0]], [row(deepmind=1)])[0], np.asarray(small[0]))


def test_only_byol_has_deepminds_colors_and_a_recipe_can_have_the_others():
    for preset in ("barlow_twins", "byol", "simsiam", "swav", "seer"):
        views = resolve_views(ViewsConfig(preset=preset), "swav")
        assert {view.colors for view in views} == {"deepmind" if preset == "byol" else "torchvision"}
    views = resolve_views(ViewsConfig(colors="torchvision"), "byol")
    assert {view.colors for view in views} == {"torchvision"}
    assert sample_views(views, 48, 48, (0, 0, 0))[0].params[PARAMS.index("deepmind")] == 0
    views = resolve_views(ViewsConfig(), "byol")
    assert sample_views(views, 48, 48, (0, 0, 0))[0].params[PARAMS.index("deepmind")] == 1


def test_the_fast_colors_of_byol_are_as_near_to_the_reference_as_is_said():
    content = pq.read_table(recipes_folder() / "quickstart" / "train.parquet").column("image").to_pylist()[:100]
    images = [Image.open(io.BytesIO(record["bytes"])).convert("RGB").resize((64, 64)) for record in content]
    view = replace(resolve_views(ViewsConfig(), "byol")[0], blur=0.0, grayscale=0.0)
    rows = [sample_views([view], 64, 64, (0, 0, i))[0].params for i in range(len(images))]
    saturations = [row(saturation=r[PARAMS.index("saturation")], deepmind=1) for r in rows]
    untouched = np.stack([np.asarray(image) for image in images])

    def distances(rows, arithmetic="torch") -> tuple[float, float]:
        published = reference(images, rows)
        return np.abs(published - untouched).mean(), np.abs(fast(images, rows, arithmetic) - published).mean()

    # The figures in the docstring of photometric.py, of 255 levels.
    assert distances(rows) == pytest.approx((39.8, 3.3), abs=0.2)
    assert distances(saturations) == pytest.approx((1.5, 1.4), abs=0.2)
    contrast = [row(contrast=1.4, deepmind=1)] * len(images)
    assert distances(contrast)[1] < 0.5
    for published in (rows, saturations, contrast):
        assert distances(published, "auto")[1] < 0.01, "a CPU's colors are DeepMind's"


@both
def test_neutral_rows_are_normalized_and_nothing_else(crops, arithmetic):
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    out = Photometric(mean, std, arithmetic)(pixels_of(crops)[0], torch.from_numpy(np.stack(same(NEUTRAL))))
    expected = (pixels_of(crops)[0].numpy() / 255 - mean) / std
    assert np.allclose(out.permute(0, 2, 3, 1).numpy(), expected, atol=1e-5)


def test_every_view_is_dense_and_channels_last_for_global_and_local_crops(crops):
    pixels = pixels_of(crops)
    rows = torch.from_numpy(np.stack([row(hue=0.1, sigma=1.0)] * 32)).view(2, 16, -1)
    batch = {"views": pixels.repeat(2, 1, 1, 1, 1), "params": rows}
    batch |= {"local_views": pixels[:, :, :24, :24].contiguous(), "local_params": rows[:1]}
    inputs = ImageTransform([0.5] * 3, [0.2] * 3)(batch)
    assert inputs["pixel_values"].shape == (16, 2, 3, 48, 48)
    assert inputs["local_pixel_values"].shape == (16, 1, 3, 24, 24)
    for views in inputs.values():
        for v in range(views.shape[1]):
            assert views[:, v].is_contiguous(memory_format=torch.channels_last)


@both
@pytest.mark.parametrize("preset", ["barlow_twins", "byol"])
def test_an_image_looks_the_same_alone_in_a_batch_and_in_small_chunks(crops, preset, arithmetic, monkeypatch):
    view = resolve_views(ViewsConfig(), preset)[1]
    rows = [d.params for d in sample_views([view] * 16, 48, 48, (0, 0, 0))]
    together = fast(crops, rows, arithmetic)
    alone = np.concatenate([fast([c], [r], arithmetic) for c, r in zip(crops, rows, strict=True)])
    monkeypatch.setitem(photometric._CHUNK, "cpu", 3 * 48 * 48 * 3)
    in_chunks = fast(crops, rows, arithmetic)
    for other in (alone, in_chunks):
        assert np.array_equal(together, other) if arithmetic == "auto" else np.allclose(together, other, atol=0.01)


def test_on_a_cpu_views_are_the_same_numbers_with_any_count_of_threads(crops):
    rows = torch.from_numpy(np.stack(same(row(contrast=0.7, hue=0.1, sigma=1.0)))).repeat(40, 1)
    pixels, normalized = pixels_of(crops)[0].repeat(40, 1, 1, 1), Photometric([0.4, 0.5, 0.6], [0.2, 0.3, 0.23])
    before, made = torch.get_num_threads(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            made.append(normalized(pixels, rows))
        finally:
            torch.set_num_threads(before)
    assert torch.equal(*made)
    assert torch.equal(made[0][:16], made[0][-16:])


def test_the_pixels_of_the_loader_are_left_as_they_are(crops):
    pixels, rows = pixels_of(crops)[0], torch.from_numpy(np.stack(same(row(multiply=1.2, sigma=1.0, threshold=0.5))))
    before = pixels.clone()
    Photometric([0.0] * 3, [1.0] * 3)(pixels, rows)
    assert torch.equal(pixels, before)


def test_an_unknown_arithmetic_is_named():
    with pytest.raises(ValueError, match="'auto' or 'torch', not 'fast'"):
        Photometric([0.5], [0.5], "fast")


@both
@pytest.mark.parametrize("deepmind", [0, 1])
def test_gray_images_keep_one_channel_and_have_no_color_operations(crops, deepmind, arithmetic):
    gray = [crop.convert("L") for crop in crops]
    changes = {"multiply": 1.2, "contrast": 0.7, "sigma": 1.0, "threshold": 0.6, "deepmind": deepmind}
    rows, without = same(row(saturation=0.2, hue=0.2, gray=1, **changes)), same(row(**changes))
    made = fast(gray, rows, arithmetic)
    assert made.shape == (16, 48, 48, 1)
    assert np.allclose(made, fast(gray, without, arithmetic), atol=0.01)
    assert np.median(np.abs(made - reference(gray, rows))) < 2
    plain = same(row(multiply=1.2, contrast=0.7, deepmind=deepmind))
    assert arithmetic == "torch" or np.abs(fast(gray, plain) - reference(gray, plain)).max() < 2.01


@both
def test_solarizing_comes_after_blur_and_color(crops, arithmetic):
    rows = same(row(multiply=0.7, gray=1, sigma=1.5, threshold=0.3))
    before = fast(crops, same(row(multiply=0.7, gray=1, sigma=1.5)), arithmetic)
    wanted = np.where(before >= 0.3 * 255, 255 - before, before)
    assert np.allclose(fast(crops, rows, arithmetic), wanted, atol=0.01)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_views_and_is_never_waited_for(crops):
    view = resolve_views(ViewsConfig(), "barlow_twins")[1]
    rows = np.stack([d.params for d in sample_views([view] * 16, 48, 48, (0, 0, 0))])
    batch = {"views": pixels_of(crops).pin_memory(), "params": torch.from_numpy(rows)[None].pin_memory()}
    on_device = ImageTransform([0.5] * 3, [0.2] * 3)
    on_device(batch, "cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        views = on_device(batch, "cuda")["pixel_values"]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    on_cpu = ImageTransform([0.5] * 3, [0.2] * 3)
    on_cpu.photometric = Photometric([0.5] * 3, [0.2] * 3, "torch")
    expected = on_cpu(batch)["pixel_values"]
    close = (views.cpu() - expected).abs() < 1e-2
    assert close.float().mean() > 0.999  # solarization amplifies rounding at its threshold
