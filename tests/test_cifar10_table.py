# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""The page of `tests/benchmarks/cifar10_cpu.py`, which is filled in pieces."""

import pytest

from hf_ssl.resolve import resolve
from tests.benchmarks import cifar10_cpu
from tests.benchmarks.cifar10_cpu import SEEDS, SIDES, TITLES, recipe_of, write_page


def line(method: str, side: str, seed: int, knn: float) -> dict:
    figures = {"knn": knn, "linear": knn + 0.05, "cpu_seconds": 60.0, "images": 24000}
    before = {} if side == "lightly" else {"untrained_knn": 0.25, "untrained_linear": 0.3}
    return {"method": method, "side": side, "seed": seed, **figures, **before}


def test_a_page_has_what_was_run_and_keeps_the_words_around_its_tables(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- tables -->\nold\n<!-- -->\nafter\n")
    scores = {"lightly": 0.40, "as lightly": 0.41, "ours": 0.44}
    lines = [line("byol", side, seed, scores[side] + 0.01 * seed) for side in SIDES for seed in SEEDS]
    write_page([*lines, line("swav", "ours", 0, 0.39)], page)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| BYOL | lightly 1.6.0 | 3 | 41.0 ± 0.6 | 46.0 ± 0.6 | 25.0 ± 0.0 | 30.0 ± 0.0 | 400 | 1.0 |" in text
    assert "| SwAV | hf_ssl, ours | 1 | 39.0 |" in text
    assert "| SwAV | lightly 1.6.0 | 0 | not measured |" in text
    (verdict,) = [row for row in text.splitlines() if row.startswith("| BYOL | +")]  # SwAV has not all sides yet
    assert verdict == "| BYOL | +1.0 | 1.2 | +1.0 | 1.2 | +4.0 | +4.0 | +20.0 |"


@pytest.mark.parametrize("method", TITLES)
def test_all_sides_have_the_same_images_network_epochs_batch_and_precision(method):
    recipes = [recipe_of(method, side, 1) for side in SIDES]
    trains = [recipe.train for recipe in recipes]
    assert len({(t.epochs, t.batch_size, t.precision, t.seed) for t in trains}) == 1
    assert len({str(recipe.model["backbone_args"]) for recipe in recipes}) == 1
    for recipe in recipes:
        resolve(recipe)


def test_settings_are_not_chosen_by_test_images(monkeypatch):
    monkeypatch.setattr("sys.argv", ["cifar10_cpu.py", "--data", "nowhere", "--set", "optim.lr=1"])
    with pytest.raises(SystemExit):
        cifar10_cpu.main()
