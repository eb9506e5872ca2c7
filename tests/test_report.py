"""report.html of an evaluation: what it shows, and in a real browser that it works, if there is one."""

import base64
import csv
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import BROWSER, browse
from omegaconf import DictConfig
from PIL import Image

from vivit_train.data.annotations.folder import read_folder
from vivit_train.data.datamodule import VideoDataModule
from vivit_train.data.dataset import EvalProtocol
from vivit_train.run import evaluate, train
from vivit_train.training.report import write_report
from vivit_train.training.result import Result
from vivit_train.training.thumbnails import thumbnail

Config = Callable[..., DictConfig]
pytest.importorskip("plotly")
HOSTILE = (
    "<img src=x onerror=document.title='x'>",
    "</script><script>document.title='x'</script>",
    "a\u202eb & \"c\" 'd'",
)


def text_of(page: str) -> str:
    """The text of a page without its scripts and tags."""
    body = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", body)))


def chart_data(page: str) -> dict[str, Any]:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, flags=re.DOTALL)
    return json.loads(text)


def data_of(videos: Path, views: tuple[int, int] = (1, 1), copies: int = 1) -> VideoDataModule:
    clip = {"frames": 4, "stride": 2, "short_side": 36, "crop": 32, "num_workers": 0}
    protocol = EvalProtocol("test", views)
    splits = {split: split for split in ("train", "val", "test")}
    data = VideoDataModule("clips", str(videos), read_folder, protocol=protocol, **splits, **clip)  # type: ignore[arg-type]
    table = data.splits.test
    assert table is not None
    many = table.select(np.arange(len(table) * copies) % len(table))
    data.given_splits = replace(data.splits, test=many)
    del data.splits
    return data


def page_of(
    path: Path, data: VideoDataModule, classes: dict[str, tuple[str, ...]], *, failed: int = 0, views: int = 0
) -> str:
    """The page of a model that is right in about half of the cases."""
    table, draw = data.manifest_of("test"), np.random.default_rng(0)
    sizes = [len(names) for names in classes.values()]
    label = np.stack([draw.integers(size, size=len(table)) for size in sizes], axis=1)
    starts = np.cumsum([0, *sizes[:-1]])
    logits = draw.normal(size=(len(table), sum(sizes))).astype(np.float32)
    for start, column in zip(starts, label.T, strict=True):
        logits[np.arange(len(table)), start + column] += 2
    is_failed = np.arange(len(table)) < failed
    logits[is_failed] = np.nan
    right = draw.random((len(table), views)) < np.linspace(0.4, 0.6, views)
    rows = {"index": np.arange(len(table)), "label": label, "logits": logits, "failed": is_failed, "right": right}
    return written(path, Result(rows, classes, table.paths), data)


def written(path: Path, result: Result, data: VideoDataModule) -> str:
    contents = result.contents(str(data.protocol)) | {
        **{"split": "test", "views": "{}x{}".format(*data.protocol.views), "order": "forward"},
        **{"checkpoint": str(path.parent / "checkpoints/best.ckpt"), "seconds": 1.5},
    }
    write_report(path, result, contents, data, "vivit_fe, 1 M parameters")
    return path.read_text(encoding="utf-8")


def test_a_page_says_what_the_numbers_mean(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(
        "epoch,step,train/loss_epoch,val/score,val/top1,val/loss\n"
        "0,3,2.0,,,\n0,3,,0.25,0.25,1.9\n1,6,1.5,,,\n1,6,,0.5,0.5,1.4\n2,9,1.2,,,\nx,y,z\n2,9,,0.375,0.375,1.5\n"
    )
    data = data_of(videos, (4, 3))
    names = (*HOSTILE, "push", "kick")
    page = page_of(tmp_path / "report.html", data, {"": names}, failed=2, views=12)
    text = text_of(page)
    for words in ("best.ckpt on clips, test split", "16 videos, 4x3 views", "2 unreadable, counted as wrong"):
        assert words in text, words
    assert re.search(r"expect a top-1 between \d+\s% and \d+\s%", text)
    assert "4 frames, stride 2, 32x32 pixels" in text
    assert r"a\u202eb" in page
    assert "\u202e" not in page
    assert not [tag for tag in re.findall(r"<img[^>]*>", page) if "onerror" in tag]
    assert page.count("</script>") == 3
    found = chart_data(page)
    assert found["curves"]["best"] == {"epoch": 2, "score": 0.5}
    assert found["curves"]["loss"]["training"] == [2.0, 1.5, 1.2]
    assert len(found["views"]["accuracy"]) == 12
    cells = found["heads"][0]["confusion"]
    assert sum(count for *_, count in cells) == 16
    assert sum(count for _, predicted, count in cells if predicted < 0) == 2
    assert page.count("data:image/webp;base64,") == 14  # all that could be read
    own = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"(src|href)=\"(?!#|data:)", own)


def test_two_heads_and_several_labels_have_their_own_sections(videos: Path, tmp_path: Path) -> None:
    data = data_of(videos)
    page = page_of(tmp_path / "heads.html", data, {"verb": ("take", "put"), "noun": ("cup", "pan", "lid")})
    text = text_of(page)
    assert "action top-1" in text
    assert "Verb classes" in text
    assert "Noun classes" in text
    assert len(chart_data(page)["heads"]) == 2

    table, draw = data.manifest_of("test"), np.random.default_rng(0)
    label = draw.random((len(table), 3)) < 0.5
    logits = (draw.normal(size=label.shape) + 2 * label - 1).astype(np.float32)
    rows = {"index": np.arange(16), "label": label, "logits": logits, "failed": np.zeros(16, np.bool)}
    rows["right"] = np.arange(32).reshape(16, 2) % 3 == 0
    page = written(tmp_path / "labels.html", Result(rows, {"": ("red", "green", "blue")}, table.paths), data)
    assert "mAP" in text_of(page)
    assert 'data-chart="confusion"' not in page
    assert "exactly its classes" in text_of(page)
    assert chart_data(page)["views"]["accuracy"] == [6 / 16, 5 / 16]
    assert "confusion" not in chart_data(page)["heads"][0]


def test_a_thumbnail_moves() -> None:
    kind, _, content = thumbnail(
        torch.arange(0, 240, 10, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 64, 96)
    ).partition(",")
    image: Any = Image.open(io.BytesIO(base64.b64decode(content)))
    assert kind == "data:image/webp;base64"
    assert (image.n_frames, image.size) == (12, (160, 106))


@pytest.mark.slow
def test_train_and_eval_write_the_page_unless_told_not_to(videos: Path, config: Config, tmp_path: Path) -> None:
    folder = ["data=folder", f"data.root={videos}"]
    train(config(*folder, "trainer.max_epochs=2", "eval.report=true"))
    run, evaluated = tmp_path / "run", tmp_path / "results"
    assert chart_data((run / "report.html").read_text())["curves"]["epoch"] == [1, 2]
    checkpoint = f"ckpt_path={run}/checkpoints/best.ckpt"
    settings = ["eval.views=2x3", "eval.hardest_first=true", "eval.report=true"]
    results = evaluate(config(checkpoint, *settings, name="eval"))
    found = chart_data((evaluated / "report.html").read_text())
    assert len(found["views"]["accuracy"]) == 6
    assert found["curves"]["epoch"] == [1, 2]
    assert (results["views"], results["order"], results["version"]) == ("2x3", "forward", "0.1.0")
    assert re.fullmatch(r"[0-9a-f]{40}(\+changes)?", results.get("commit", "0" * 40))
    assert results["seconds"] > 0
    rows = list(csv.DictReader((evaluated / "predictions.csv").open()))
    chances = [float(row["label_probability"]) for row in rows]
    assert chances == sorted(chances)
    evaluate(config(checkpoint, name="eval"))
    assert not (evaluated / "report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("logger", ["tensorboard", "wandb"])
def test_pictures_go_to_the_loggers(
    logger: str, videos: Path, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    train(config("data=folder", f"data.root={videos}", f"logger={logger}", pictures=True))
    names = {"train/contact_sheet", "curves", "test/confusion"}
    if logger == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
        assert set(events.Tags()["images"]) == names
    else:
        pictures = (tmp_path / "run/wandb").glob("offline-run-*/files/media/images/**/*.png")
        assert len(list(pictures)) == 3


WAIT = "const wait = (ms) => new Promise((done) => setTimeout(done, ms));"
# Chromium's virtual time does not wait for the frames of smooth scrolling.
SHOW = (
    "for (const e of document.querySelectorAll('.chart')) "
    "{ e.scrollIntoView({ behavior: 'instant' }); await wait(400); }"
)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_the_page_works_in_a_browser(videos: Path, tmp_path: Path) -> None:
    """400 classes and 20,000 videos, some under hostile names."""
    names = (*HOSTILE, *(f"class {k:03}" for k in range(397)))
    path = tmp_path / "report.html"
    page_of(path, data_of(videos, copies=1250), {"": names}, failed=3, views=6)
    assert path.stat().st_size < 25e6
    script = f"""{WAIT} {SHOW}
    const rows = () => [...document.querySelectorAll('#table0 tbody tr')].filter((row) => !row.hidden);
    const recall = document.querySelectorAll('#table0 th button')[2];
    const values = () => rows().map((row) => +row.cells[2].dataset.value);
    recall.click(); const down = values(); recall.click(); const up = values();
    const input = document.querySelector('input[type=search]');
    input.value = 'CLASS 01'; input.dispatchEvent(new Event('input')); await wait(50);
    const found = rows().map((row) => row.cells[0].textContent).sort();
    document.querySelector('[data-cell]').click(); await wait(1500);
    const matrix = document.querySelector('[data-chart=confusion]');
    return {{ down, up, found, count: document.querySelector('.count').textContent, title: document.title,
      drawn: [...document.querySelectorAll('.chart')].map((e) => e.querySelectorAll('.main-svg').length > 0),
      ticks: matrix.layout.xaxis.ticktext.length, overflow: document.documentElement.scrollWidth - innerWidth,
      ready: performance.getEntriesByType('navigation')[0].domInteractive }};"""
    found = browse(path, script)
    assert len(found["down"]) == 400
    assert found["down"] == sorted(found["down"], reverse=True)
    assert found["up"] == sorted(found["up"])
    assert found["found"] == [f"class 01{k}" for k in range(10)]
    assert found["count"] == "10 of 400"
    assert all(found["drawn"])
    assert 5 <= found["ticks"] <= 40
    assert found["overflow"] <= 0
    assert found["title"] == "best.ckpt on clips, test split"


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_the_page_fits_a_phone_and_follows_the_dark_mode(videos: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    page_of(
        path, data_of(videos), {"": ("push", "kick", "a class with a very long name_without_any_blank_in_it" * 3)}
    )
    script = f"""{WAIT} {SHOW}
    const root = document.documentElement, dark = matchMedia('(prefers-color-scheme: dark)').matches;
    const page = getComputedStyle(document.body).backgroundColor;
    return {{ overflow: root.scrollWidth - root.clientWidth, page, dark }};"""
    light, dark = browse(path, script, width=500), browse(path, script, width=500, dark=True)
    assert light["overflow"] == dark["overflow"] == 0
    assert (light["dark"], dark["dark"]) == (False, True)
    assert light["page"] != dark["page"]
