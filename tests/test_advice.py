"""Training that does not learn is said, once, with what to try; patience ends it."""

import csv
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from omegaconf import DictConfig

from vivit_train.run import train
from vivit_train.training.advice import Advice, dominant
from vivit_train.training.frame_order import difference

Config = Callable[..., DictConfig]
TASK: Any = SimpleNamespace(heads={"": 4}, classes={"": tuple("abcd")}, multi_label=False, metadata={})


def findings(history: Iterable[tuple[float, float, str]], **config: Any) -> dict[str, str]:
    advice = Advice()
    advice.history = list(history)
    task: Any = SimpleNamespace(**vars(TASK) | {"metadata": {"config": config}})
    return advice.findings(task)


def test_a_run_that_learns_is_left_alone() -> None:
    assert findings((1.4 * 0.8**i, 0.25 + 0.05 * i, "") for i in range(8)) == {}


def test_each_kind_of_trouble_has_its_words() -> None:
    assert "stayed at ln(classes) = 1.39 in the last 5" in findings([(1.386, 0.25, "")] * 6)["chance"]
    assert "predicts b for nearly all" in findings([(1.2, 0.25, "b")] * 6)["one class"]
    assert "predicts one class, now c, for" in findings([(1.2, 0.25, name) for name in "bbbbc"])["one class"]
    assert findings([(1.2, 0.25, name) for name in ["b", "b", "", "b", "b"]]) == {}
    told = findings([(1.3, 0.5, "")] + [(1.2 - 0.1 * i, 0.45, "") for i in range(5)])
    assert "the training loss fell from 1.2 to 0.8 in the last 5" in told["overfitting"]
    assert "its best, 0.500" in told["overfitting"]
    assert findings([(80, 0.5, "")] + [(70 - 9 * i, 0.45, "") for i in range(5)]) == {}


@pytest.mark.parametrize(
    ("config", "tried"),
    [
        ({}, "try init=imagenet, mixup=0.8, patience=5 (ends training early), or more"),
        ({"init": {"path": "a.pt"}, "mixup": 0.8, "patience": 3}, "try more training clips"),
        ({"init": {"name": "imagenet"}, "train": "head", "cache": True}, "try `vivit probe` (it chooses"),
        ({"init": {"name": "imagenet"}, "train": "temporal", "cache": True}, "try patience=5 (ends"),
    ],
)
def test_only_what_a_run_does_not_do_yet_is_advised(config: dict[str, Any], tried: str) -> None:
    history = [(1.3, 0.5, "")] + [(1.2 - 0.1 * i, 0.45, "") for i in range(5)]
    assert tried in findings(history, **config)["overfitting"]
    assert ("init=imagenet" in findings([(1.386, 0.25, "")] * 6, **config)["chance"]) == (not config)


@pytest.mark.parametrize(("labels", "found"), [([0, 1, 2, 3] * 5, "c"), ([2] * 18 + [0, 1], "")])
def test_one_class_is_news_only_if_the_labels_differ(labels: list[int], found: str) -> None:
    logits = np.zeros((20, 4))
    logits[:, 2] = 1
    assert dominant({"logits": logits, "label": np.array(labels)[:, None]}, TASK) == found


@pytest.mark.parametrize(
    ("lost", "gained", "words"),
    [
        (0, 0, "advice: with shuffled frames, top-1 is 0.750, and 0.750 in order"),
        (4, 0, "advice: with shuffled frames, top-1 is 0.550"),  # One in 16: a coin would do it.
        (7, 1, "order    with shuffled frames, top-1 is 0.450, and 0.750 in order (20 clips): the model uses"),
        (1, 5, "advice: with shuffled frames, top-1 is 0.950"),
    ],
)
def test_whether_shuffled_frames_score_the_same_is_a_matter_of_the_clips_that_change(
    lost: int, gained: int, words: str
) -> None:
    right, other = np.arange(20) < 15, np.arange(20) < 15
    other[:lost], other[15 : 15 + gained] = False, True
    forward, shuffled = (
        {"logits": np.eye(2)[x.astype(int)], "label": np.ones((20, 1), int), "failed": np.zeros(20, bool)}
        for x in (right, other)
    )
    assert difference(forward, shuffled).startswith(words)


@pytest.mark.slow
def test_it_is_said_once_in_a_run_that_is_resumed_too(
    config: Config, videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data=folder", f"data.root={videos}", "optimizer.lr=1e-12", "callbacks.advice.epochs=2"]
    train(config(*words, "trainer.max_epochs=3"))
    assert capsys.readouterr().out.count("advice: the training loss has stayed at ln(classes) = 2.08") == 1
    train(config(*words, "trainer.max_epochs=4", "resume=auto"))
    assert "advice:" not in capsys.readouterr().out


def test_patience_ends_training_and_resuming_trains_nothing(
    config: Config, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data=folder", f"data.root={videos}", "optimizer.lr=1e-12", "trainer.max_epochs=9", "patience=2"]
    train(config(*words))
    assert "training ends: val/score has not improved in 2 validations (patience=2" in capsys.readouterr().out
    train(config(*words, "resume=auto"))
    assert "nothing is trained: val/score has not improved" in capsys.readouterr().out
    train(config(*words, "resume=auto", "patience=3"))
    assert "training ends: val/score has not improved in 3" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "run/metrics.csv").open()))
    assert len([row for row in rows if row["train/loss_epoch"]]) == 4
    assert all(0 <= float(row["train/top1"]) <= 1 for row in rows if row["train/top1"])
    assert len([row for row in rows if row["train/top1"]]) == 4


@pytest.mark.slow
def test_a_run_says_what_its_score_is_worth(
    config: Config, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(videos, tmp_path / "videos")
    (one, *_) = sorted((tmp_path / "videos/train/recede").iterdir())
    shutil.copy(one, tmp_path / "videos/test/recede/copy.mp4")
    train(config("data=folder", f"data.root={tmp_path / 'videos'}", "optimizer.lr=1e-12", pictures=True))
    said = capsys.readouterr().out
    assert "note     1 pair of videos in different splits look alike" in said
    assert f"{one} (train), 0 of 448 bits differ" in " ".join(said.split())
    assert "advice: with shuffled frames, top-1 is 0." in said
    assert "0 of 17 clips are lost" in said
