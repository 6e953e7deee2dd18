# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""`hf-ssl report`: what the page of a run says, and that a browser shows it."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hf_ssl.cli import main
from hf_ssl.recipe import load_recipe
from hf_ssl.report import report
from hf_ssl.report.pictures import principal_colors
from hf_ssl.training.pretrain import pretrain
from tests.methods import METHOD_OVERRIDES, few_steps, recipe_file


@pytest.fixture(scope="module")
def runs(digits, tmp_path_factory) -> list[Path]:
    """Two finished runs, which differ in their learning rates."""
    folder, made = tmp_path_factory.mktemp("runs"), []
    for name, rate in (("slow", 0.01), ("fast", 0.2)):
        overrides = ["model.projector_dim=16", "model.predictor_hidden=8", f"optim.lr={rate}", "train.log_every=1"]
        pretrain(few_steps("simsiam", folder / name, f"data.path={digits}", *overrides))
        made.append(folder / name)
    return made


@pytest.fixture(scope="module")
def page(runs) -> Path:
    return report(runs)


def test_the_page_of_a_run_needs_nothing_else(runs):
    written = report([runs[0]])
    text = written.read_text(encoding="utf-8")
    assert written == (runs[0] / "report.html").resolve() and written.stat().st_size < 5e6
    assert not re.search(r"""(src|href)=["'](?!data:|#)|url\("(?!data:)|@import""", text)
    for said in ("kNN accuracy", "raw pixels", "Nearest neighbors", "<h2>Feature maps", "test_resnet"):
        assert said in text
    assert text.count("<svg") == 3  # curves, the map's place, singular values
    assert len(_points(text)[0]) == 64


def _points(text: str) -> list[list[dict]]:
    content = text.partition('id="maps">')[2].partition("</script>")[0]
    return [one["points"] for one in json.loads(content)]


def test_two_runs_are_compared(page, runs):
    text = page.read_text(encoding="utf-8")
    table = text.partition("Recipe differences")[2].partition("</table>")[0]
    assert re.findall(r"<code>(.+?)</code>", table) == ["optim.lr"] and "0.01" in table and "0.2" in table
    assert text.index("Recipe differences") < text.index("<h2>Curves")
    assert "slow: loss" in text and "fast: loss" in text and len(_points(text)) == 2


def test_a_browser_shows_the_page(page, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api")
    if (chromium := shutil.which("chromium")) is None:
        pytest.skip("no chromium")
    said = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": 420, "height": 800}, color_scheme="dark")
        shown.on("console", lambda message: said.append(message.text))
        shown.on("pageerror", lambda error: said.append(str(error)))
        shown.goto(page.as_uri())
        point = shown.locator("circle").nth(3)
        point.scroll_into_view_if_needed()
        assert not shown.locator("#tip").is_visible()
        point.hover()
        assert re.match(r"\d: row \d+ of test", shown.locator("#tip p").inner_text())
        shown.screenshot(path=tmp_path / "page.png")
        shown.locator(".legend li").first.click()
        assert shown.locator(".map").first.locator("circle.on").count() == shown.evaluate(
            "maps[0].points.filter((p) => p.c === 0).length"
        )
        assert shown.evaluate("document.documentElement.scrollWidth") <= 420
        browser.close()
    assert said == []
    assert np.asarray(Image.open(tmp_path / "page.png")).std() > 10


def test_labels_and_names_are_text_and_never_markup(tmp_path):
    evil = "<script>document.title='broken'<"
    for split in ("train", "test"):
        for label in (evil, "other"):
            (tmp_path / "data" / split / label).mkdir(parents=True)
            for i in range(8):
                pixels = np.random.default_rng(i).integers(0, 255, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / split / label / f"{i}.png")
    (tmp_path / "data" / "train" / "other" / "torn<b>.png").write_bytes(b"no image")
    tiny = ("model.projector_dim=16", "model.predictor_hidden=8", "train.batch_size=4", "data.max_failed_share=0.9")
    pretrain(few_steps("simsiam", tmp_path / "run", f"data.path={tmp_path / 'data'}", *tiny, "train.steps=8"))
    text = report([tmp_path / "run"]).read_text(encoding="utf-8")
    assert "<script>document" not in text and "torn&lt;b&gt;.png" in text
    assert any(point["c"] >= 0 for point in _points(text)[0])


def test_videos_with_sound_show_what_they_find(videos, tmp_path):
    more = [f"data.path={videos}", "views.first.size=32", "train.steps=4", f"train.output_dir={tmp_path / 'run'}"]
    pretrain(load_recipe(recipe_file("avid", tmp_path), [*METHOD_OVERRIDES["avid"], *more, "data.num_workers=0"]))
    text = report([tmp_path / "run"]).read_text(encoding="utf-8")
    assert "Retrieval, video to audio" in text and "Retrieval, audio to video" in text
    assert text.count(" same</figcaption>") >= 1 and len(_points(text)[0]) == 8


def _written(folder: Path, *lines: dict, recipe: str = "method: simsiam\ntrain: {steps: 9}\n") -> Path:
    folder.mkdir()
    (folder / "recipe.yaml").write_text(recipe)
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"epoch": one["step"], **one}) + "\n" for one in lines))
    return folder


@pytest.mark.parametrize(
    ("after", "word"),
    [
        ({"knn": 0.60, "embedding_std": 0.9}, "learning"),
        ({"knn": 0.302, "embedding_std": 0.9}, "stalled"),
        ({"knn": 0.60, "embedding_std": 0.05}, "collapsed"),
        ({"embedding_std": 0.9}, "unknown"),
        ({"loss": 1.0}, "unknown"),
    ],
)
def test_the_verdict(after, word, tmp_path):
    before = {"knn": 0.30, "knn_raw_pixels": 0.4} if "knn" in after else {"loss": 2.0}
    run = _written(tmp_path / "run", {"step": 0, **before}, {"step": 9, **after})
    assert f'class="badge {word}"' in report([run]).read_text(encoding="utf-8")


def test_a_run_that_has_not_ended_has_curves(tmp_path):
    run = _written(tmp_path / "run", {"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0})
    text = report([run], output=tmp_path / "elsewhere" / "page.html").read_text(encoding="utf-8")
    assert "has not ended" in text and "<svg" in text and "The recipe names no data" in text


def test_what_is_no_run_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["report", str(tmp_path)])
    assert stopped.value.code == 2 and "is not a run" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["report", str(_written(tmp_path / "new"))])
    assert "no metrics.jsonl" in capsys.readouterr().err


def test_a_method_that_a_folder_names_is_not_imported(tmp_path):
    code = tmp_path / "mine.py"
    code.write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\n")
    run = _written(tmp_path / "run", {"step": 1, "loss": 2.0}, recipe=f"method: {code}:Mine\ntrain: {{steps: 9}}\n")
    report([run])
    assert not (tmp_path / "imported").exists()


def test_the_command_writes_the_page_when_a_run_ends(digits, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text("method: simsiam\n")
    given = ["model.backbone=test_resnet", "views.all.size=32", "train.batch_size=16", "train.steps=2"]
    main(["pretrain", "tiny.yaml", f"data.path={digits}", *given, "data.num_workers=0"])
    assert (tmp_path / "runs" / "tiny" / "report.html").is_file()


def test_the_colors_of_feature_maps_follow_the_features():
    """Positions with equal features have equal colors in all maps, others do not."""
    torch.manual_seed(0)
    kinds = torch.randn(4, 12).numpy()
    which = np.random.default_rng(0).integers(0, 4, (3, 5, 5))
    colors = principal_colors(kinds[which])
    of_kind = [np.unique(colors[which == kind].reshape(-1, 3), axis=0) for kind in range(4)]
    assert all(len(one) == 1 for one in of_kind)
    assert len({tuple(one[0]) for one in of_kind}) == 4
