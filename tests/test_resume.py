"""Runs that are killed go on from their checkpoint to the very weights of a run that was not."""

import csv
import errno
import multiprocessing
import os
import random
import re
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from vivit_train.errors import UserError, exit_with_message
from vivit_train.resume import WholeFiles, newest_checkpoint
from vivit_train.run import train

Config = Callable[..., DictConfig]
fork = multiprocessing.get_context("fork")  # a new interpreter takes ten seconds to import lightning


def settings(videos: Path, epochs: int, *others: str) -> list[str]:
    """Three steps an epoch, with everything that has a state: accumulation, mixing, averaged weights."""
    names = [
        f"recipe.epochs={epochs}",
        "recipe.mixup=0.3",
        "recipe.ema=0.9",
        "data.micro_batch=2",
        "callbacks.last.minutes=0",
    ]
    return ["data=folder", f"data.root={videos}", *names, *others]


def start(cfg: DictConfig) -> Any:
    """A process, and leader of a group of processes, that trains."""

    def run() -> None:
        os.setpgrp()
        exit_with_message(partial(train, cfg))

    torch.set_num_threads(1)  # a forked process must not meet the threads of its parent
    process = fork.Process(target=run)
    process.start()
    return process


def wait_for_another(checkpoint: Path, process: Any) -> None:
    def when() -> int:
        return checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0

    before = when()
    while when() == before and process.is_alive():
        time.sleep(0.005)


def state(run: Path) -> dict[str, torch.Tensor]:
    """The averaged weights, and the others."""
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    return checkpoint["state_dict"] | {f"current.{k}": v for k, v in checkpoint["current_model_state"].items()}


def logged(run: Path) -> list[dict[str, str]]:
    """metrics.csv without what a clock and the machine say."""
    with open(run / "metrics.csv", newline="") as file:
        return [
            {k: v for k, v in row.items() if not re.search("clips_per_s|wait|mfu|memory", k)}
            for row in csv.DictReader(file)
        ]


@pytest.mark.parametrize(
    ("epochs", "num_workers"),
    [(2, 2), pytest.param(20, 0, marks=pytest.mark.slow), pytest.param(20, 2, marks=pytest.mark.slow)],
)
def test_a_run_that_is_killed_goes_on_exactly(
    videos: Path, config: Config, tmp_path: Path, epochs: int, num_workers: int
) -> None:
    choices = settings(videos, epochs, f"data.num_workers={num_workers}", "trainer.log_every_n_steps=1")
    process = start(config(*choices))
    process.join()
    assert process.exitcode == 0
    (tmp_path / "run").rename(tmp_path / "whole")
    kills, draw = 0, random.Random(epochs)
    while True:
        process = start(config(*choices, "resume=auto"))
        wait_for_another(tmp_path / "run/checkpoints/last.ckpt", process)
        process.join(draw.uniform(0, 0.8))
        if process.exitcode is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += 1
    assert process.exitcode == 0
    assert kills >= epochs // 2
    expected, found = state(tmp_path / "whole"), state(tmp_path / "run")
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name
    assert logged(tmp_path / "run") == logged(tmp_path / "whole")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_a_signal_ends_a_run_with_its_state_saved(
    videos: Path, config: Config, tmp_path: Path, capfd: pytest.CaptureFixture[str], number: int, code: int
) -> None:
    last = tmp_path / "run/checkpoints/last.ckpt"
    process = start(config(*settings(videos, 1000, "callbacks.last.minutes=60", "data.num_workers=1")))
    wait_for_another(last, process)
    os.killpg(process.pid, number)  # the loader's processes too, as a terminal and SLURM do
    process.join(15)
    assert process.exitcode == code
    step = torch.load(last, weights_only=True)["global_step"]
    assert step >= 3
    assert f"goes on after step {step}\n" in capfd.readouterr().err


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoints/last.ckpt"
    WholeFiles().save_checkpoint({"step": 1}, path)

    def full(checkpoint: Any, file: Any) -> None:
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    WholeFiles().save_checkpoint({"step": 2}, path)
    assert "No space left on device" in capsys.readouterr().out
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]
    assert torch.load(path, weights_only=True) == {"step": 1}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_a_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "last.ckpt.part").symlink_to("/dev/full")
    WholeFiles().save_checkpoint({"weights": torch.zeros(100_000)}, tmp_path / "last.ckpt")
    assert "No space left on device" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_the_newest_whole_checkpoint_is_found(tmp_path: Path) -> None:
    def write(name: str, step: int) -> None:
        torch.save({"vivit_train": {}, "global_step": step, "state_dict": {"w": torch.ones(9)}}, tmp_path / name)

    said: list[str] = []
    assert newest_checkpoint(tmp_path, said.append) is None
    for name, step in (("best.ckpt", 5), ("last.ckpt", 5), ("older.ckpt", 4), ("newer.ckpt", 9)):
        write(name, step)
    data = (tmp_path / "newer.ckpt").read_bytes()
    (tmp_path / "newer.ckpt").write_bytes(data[: len(data) // 2])
    torch.save({"state_dict": {}, "global_step": 10}, tmp_path / "foreign.ckpt")
    newest = newest_checkpoint(tmp_path, said.append)
    assert newest is not None
    assert newest.name == "last.ckpt"
    assert len(said) == 2
    assert "newer.ckpt is passed over" in said[1]


def test_there_must_be_something_to_go_on_with(videos: Path, config: Config) -> None:
    with pytest.raises(UserError, match=r"ckpt_path=last: no checkpoint in .*/run/checkpoints"):
        train(config(*settings(videos, 1, "ckpt_path=last")))
