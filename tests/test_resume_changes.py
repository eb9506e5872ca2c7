"""A run that resumes is compared with its checkpoint: what may change takes effect, the rest is refused."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from vivit_train.changes import changed_settings
from vivit_train.run import train
from vivit_train.utils.errors import UserError

Config = Callable[..., DictConfig]


@pytest.fixture
def again(videos: Path, config: Config) -> Callable[..., float]:
    """Trains two epochs with some words, or goes on with the run."""

    def run(*words: str) -> float:
        common = ["data=folder", f"data.root={videos}", "trainer.log_every_n_steps=1", "trainer.max_epochs=2"]
        return train(config(*common, *words))

    return run


def logged(tmp_path: Path, column: str) -> dict[int, float]:
    with (tmp_path / "run/metrics.csv").open() as file:
        return {int(row["step"]): float(row[column]) for row in csv.DictReader(file) if row[column]}


def saved(tmp_path: Path) -> Any:
    return torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)


def test_new_hyperparameters_reach_the_optimizer_and_the_schedule(
    again: Callable[..., float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again("optimizer.lr=0.01", "scheduler=constant", "scheduler.warmup_epochs=0", "optimizer.weight_decay=0.05")
    capsys.readouterr()
    new = ["optimizer.lr=0.002", "optimizer.weight_decay=0.3", "optimizer.betas=[0.8,0.9]", "trainer.max_epochs=4"]
    again("scheduler=constant", "scheduler.warmup_epochs=0", *new, "resume=auto")
    rates = logged(tmp_path, "train/lr")
    assert [rates[step] for step in range(12)] == pytest.approx([0.01] * 6 + [0.002] * 6)
    decaying, others = saved(tmp_path)["optimizer_states"][0]["param_groups"]
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    assert decaying["betas"] == (0.8, 0.9)
    assert saved(tmp_path)["vivit_train"]["config"]["optimizer"]["lr"] == 0.002
    record = (tmp_path / "run/recipe_differences.txt").read_text()
    for text in (capsys.readouterr().out, record):
        assert "changed at step 6, when the run was resumed:" in text
        assert "optimizer.lr: 0.01 -> 0.002" in text
        assert "trainer.max_epochs: 2 -> 4" in text
    again("scheduler=constant", "scheduler.warmup_epochs=0", *new, "trainer.max_epochs=5", "resume=auto")
    record = (tmp_path / "run/recipe_differences.txt").read_text()
    assert record.index("changed at step 6") < record.index("changed at step 12")


def test_another_global_batch_takes_effect(again: Callable[..., float], tmp_path: Path) -> None:
    again()
    again("global_batch_size=4", "trainer.max_epochs=3", "resume=auto")
    assert max(logged(tmp_path, "train/loss_step")) == 6 + 6 - 1  # three steps an epoch, then six


def test_what_only_costs_time_is_free(again: Callable[..., float], capsys: pytest.CaptureFixture[str]) -> None:
    again()
    capsys.readouterr()
    again("micro_batch_size=4", "data.num_workers=1", "logger=csv", "trainer.max_epochs=2", "resume=auto")
    out = capsys.readouterr().out
    assert "micro_batch_size: 8 -> 4 (changes nothing in what is learned)" in out
    assert "data.num_workers: 0 -> 1 (changes nothing in what is learned)" in out
    assert "run_dir" not in out.partition("changed at step")[2]
    assert "training is complete" in out
    assert "random weights" not in out


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["model.dim=64"], marks=pytest.mark.slow),
        pytest.param(["model=vivit_st", "data.frames=8"], marks=pytest.mark.slow),
        pytest.param(["data.crop=16", "model.tubelet=[2,8,8]"], marks=pytest.mark.slow),
        ["optimizer=sgd"],
        pytest.param(["data.name=other"], marks=pytest.mark.slow),
        pytest.param(["ema_decay=0.9"], marks=pytest.mark.slow),
    ],
)
def test_what_cannot_change_is_refused_before_anything_starts(
    words: list[str], again: Callable[..., float], tmp_path: Path
) -> None:
    again()
    before, record = saved(tmp_path)["global_step"], (tmp_path / "run/recipe_differences.txt").read_text()
    with pytest.raises(UserError) as error:
        again(*words, "trainer.max_epochs=3", "resume=auto")
    for word in words:
        key = {"optimizer": "optimizer._target_", "model": "model.model"}.get(word.partition("=")[0])
        assert (key or word.partition("=")[0]) in str(error.value)
    assert "init.path=" in str(error.value)
    assert saved(tmp_path)["global_step"] == before
    assert (tmp_path / "run/recipe_differences.txt").read_text() == record


def test_what_the_state_of_an_optimizer_needs_cannot_change() -> None:
    """amsgrad has a state of its own, which an optimizer without it has not saved."""
    for before, after in (({"lr": 1}, {"lr": 1, "amsgrad": True}), ({"amsgrad": True}, {"amsgrad": False})):
        with pytest.raises(UserError, match=r"1 setting cannot change .*\n  - optimizer\.amsgrad: "):
            changed_settings({"optimizer": before}, {"optimizer": after}, "last.ckpt")


def test_settings_of_another_version_are_left_out() -> None:
    assert changed_settings({"old": 1, "mixup": 0.0, "model": {"dim": 8}}, {"new": 2, "mixup": 0.1}, "x") == [
        "mixup: 0.0 -> 0.1"
    ]
