"""Training that does not learn is said, once, with what to try; patience ends it."""

import csv
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from omegaconf import DictConfig

from vivit_train.run import train
from vivit_train.training.advice import Advice, dominant

Config = Callable[..., DictConfig]
TASK: Any = SimpleNamespace(heads={"": 4}, classes={"": tuple("abcd")}, multi_label=False)


def findings(history: Iterable[tuple[float, float, str]]) -> dict[str, str]:
    advice = Advice()
    advice.history = list(history)
    return advice.findings(TASK)


def test_a_run_that_learns_is_left_alone() -> None:
    assert findings((1.4 * 0.8**i, 0.25 + 0.05 * i, "") for i in range(8)) == {}


def test_each_kind_of_trouble_has_its_words() -> None:
    assert "stayed at ln(classes) = 1.39 in the last 5" in findings([(1.386, 0.25, "")] * 6)["chance"]
    assert "predicts b for nearly all" in findings([(1.2, 0.25, "b")] * 6)["one class"]
    assert findings([(1.2, 0.25, name) for name in "bbbbc"]) == {}
    told = findings([(1.3, 0.5, "")] + [(1.2 - 0.1 * i, 0.45, "") for i in range(5)])
    assert "the training loss fell from 1.2 to 0.8 in the last 5" in told["overfitting"]
    assert "its best, 0.500" in told["overfitting"]


@pytest.mark.parametrize(("labels", "found"), [([0, 1, 2, 3] * 5, "c"), ([2] * 18 + [0, 1], "")])
def test_one_class_is_news_only_if_the_labels_differ(labels: list[int], found: str) -> None:
    logits = np.zeros((20, 4))
    logits[:, 2] = 1
    assert dominant({"logits": logits, "label": np.array(labels)[:, None]}, TASK) == found


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
