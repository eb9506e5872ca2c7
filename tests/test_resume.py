"""Runs that are killed go on from their checkpoint to the very weights of a run that was not."""

import csv
import errno
import json
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
from helpers import Happened
from lightning import Callback
from omegaconf import DictConfig

from vivit_train.run import train
from vivit_train.training.module import VideoClassifier
from vivit_train.training.resume import AtomicCheckpointIO, newest_checkpoint
from vivit_train.utils.errors import UserError, end_on_signals, exit_with_message

Config = Callable[..., DictConfig]
fork = multiprocessing.get_context("fork")  # a new interpreter takes ten seconds to import lightning


def settings(videos: Path, epochs: int, *others: str) -> list[str]:
    """Three steps an epoch, with everything that has a state: accumulation, mixing, averaged weights."""
    names = [
        f"trainer.max_epochs={epochs}",
        "mixup=0.3",
        "ema_decay=0.9",
        "micro_batch_size=2",
        "callbacks.last.minutes=0",
        "callbacks.contact_sheet=null",
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


def children(pid: int) -> list[int]:
    """The ids of the child processes of a process."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for text in lists for child in text.read_text().split()]


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


@pytest.mark.fault("Runs that end")
@pytest.mark.parametrize(
    ("epochs", "num_workers", "least"),
    [
        (2, 1, 2),
        pytest.param(3, 1, 4, marks=pytest.mark.slow),
        pytest.param(5, 1, 10, marks=pytest.mark.slow),
        pytest.param(40, 0, 50, marks=pytest.mark.slow),
        pytest.param(20, 2, 20, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_is_killed_goes_on_exactly(
    videos: Path, config: Config, tmp_path: Path, happened: Happened, epochs: int, num_workers: int, least: int
) -> None:
    choices = settings(videos, epochs, f"data.num_workers={num_workers}", "trainer.log_every_n_steps=1")
    process = start(config(*choices))
    wait_for_another(tmp_path / "run/checkpoints/last.ckpt", process)
    started_s = time.monotonic()
    process.join()
    assert process.exitcode == 0
    step_s = (time.monotonic() - started_s) / (3 * epochs)
    (tmp_path / "run").rename(tmp_path / "whole")
    kills, draw = 0, random.Random(epochs)
    while True:
        process = start(config(*choices, "resume=auto"))
        wait_for_another(tmp_path / "run/checkpoints/last.ckpt", process)
        process.join(draw.uniform(0, step_s / 2))
        if process.exitcode is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += 1
    assert process.exitcode == 0
    assert kills >= least
    expected, found = state(tmp_path / "whole"), state(tmp_path / "run")
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name
    assert logged(tmp_path / "run") == logged(tmp_path / "whole")
    happened(
        f"SIGKILL at {kills} random moments, {num_workers} loader processes, accumulation, mixup, EMA",
        "`resume=auto` went on each time; the weights are those of a run that was left alone, bit by bit, and "
        "metrics.csv has the same rows",
    )


@pytest.mark.fault("Runs that end")
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 75), pytest.param(signal.SIGUSR1, 75, marks=pytest.mark.slow), (signal.SIGINT, 130)],
)
def test_a_signal_ends_a_run_with_its_state_saved(
    videos: Path,
    config: Config,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    happened: Happened,
    number: int,
    code: int,
) -> None:
    last = tmp_path / "run/checkpoints/last.ckpt"
    process = start(config(*settings(videos, 1000, "callbacks.last.minutes=60", "data.num_workers=1")))
    wait_for_another(last, process)
    os.killpg(process.pid, number)  # the loader's processes too, as a terminal and SLURM do
    process.join(15)
    assert process.exitcode == code
    step = torch.load(last, weights_only=True)["global_step"]
    assert step >= 3
    said = capfd.readouterr().err
    assert f"resumes after step {step}\n" in said
    name = signal.Signals(number).name
    happened(f"{name} to all processes of a run", f"exit code {code}: {said.strip().splitlines()[-1]}")


class Slow(torch.optim.SGD):
    """An optimizer whose steps take long, as those of a large model on a CPU do."""

    def __init__(self, params: Any, lr: float, seconds: float) -> None:
        super().__init__(params, lr)
        self.seconds = seconds

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        time.sleep(self.seconds)
        return loss


@pytest.mark.slow
@pytest.mark.fault("Runs that end")
@pytest.mark.parametrize("seconds", [4, 75])
def test_a_step_may_take_long_after_a_signal(
    videos: Path,
    config: Config,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    happened: Happened,
    seconds: int,
) -> None:
    optimizer = ["optimizer=sgd", "optimizer._target_=test_resume.Slow", "~optimizer.momentum"]
    words = [*settings(videos, 1000, *optimizer, f"+optimizer.seconds={seconds}"), "data.num_workers=2"]
    last = tmp_path / "run/checkpoints/last.ckpt"
    process = start(config(*words, "callbacks.last.minutes=0"))
    wait_for_another(last, process)
    loaders = children(process.pid)
    assert len(loaders) >= 2
    for _ in range(2):  # A scheduler may repeat itself.
        os.killpg(process.pid, signal.SIGTERM)
        time.sleep(1)
    process.join(3 * seconds + 20)
    assert process.exitcode == 75
    assert f"resumes after step {torch.load(last, weights_only=True)['global_step']}\n" in capfd.readouterr().err
    assert not [pid for pid in loaders if Path(f"/proc/{pid}").exists()]
    happened(f"SIGTERM to all processes of a run whose steps take {seconds} s", "exit code 75, the state is saved")


@pytest.mark.fault("Runs that end")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT])
def test_before_training_a_signal_asks_to_be_requeued(number: int, happened: Happened) -> None:
    def run() -> None:
        end_on_signals()
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        except Exception:  # as libraries have it around their imports
            os._exit(1)

    process = fork.Process(target=run)
    process.start()
    process.join()
    code = 130 if number == signal.SIGINT else 75
    assert process.exitcode == code
    happened(
        f"{signal.Signals(number).name} before the first step, or while a result is scored", f"exit code {code}"
    )


@pytest.mark.fault("Disks and checkpoints")
def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, happened: Happened
) -> None:
    path = tmp_path / "checkpoints/last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)

    def full(checkpoint: Any, file: Any) -> None:
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    AtomicCheckpointIO().save_checkpoint({"step": 2}, path)
    said = capsys.readouterr().out
    assert "No space left on device" in said
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]
    assert torch.load(path, weights_only=True) == {"step": 1}
    happened("The disk is full half-way through a checkpoint", f"{said} The one before is whole.")


class FullDisk(Callback):
    """What is written to a file finds no room, from the start of training on."""

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def on_train_start(self, *_: Any) -> None:
        self.file.parent.mkdir(exist_ok=True)
        self.file.symlink_to("/dev/full")


@pytest.mark.fault("Disks and checkpoints")
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_disk_that_is_full_when_the_best_checkpoint_is_due_is_what_the_run_ends_with(
    videos: Path, config: Config, tmp_path: Path, happened: Happened
) -> None:
    full = f"+callbacks.full={{_target_: test_resume.FullDisk, file: {tmp_path}/run/checkpoints/best.ckpt.part}}"
    with pytest.raises(
        UserError, match=r"cannot be scored \(.*best\.ckpt: .*No space left.*holds last\.ckpt"
    ) as error:
        train(config("data=folder", f"data.root={videos}", full))
    assert (tmp_path / "run/metrics.csv").is_file()
    happened("The disk is full whenever the best checkpoint is due", error.value)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_a_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "last.ckpt.part").symlink_to("/dev/full")
    AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(100_000)}, tmp_path / "last.ckpt")
    assert "No space left on device" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.fault("Disks and checkpoints")
def test_the_newest_whole_checkpoint_is_found(
    tmp_path: Path, happened: Happened, caplog: pytest.LogCaptureFixture
) -> None:
    def write(name: str, step: int) -> None:
        torch.save({"vivit_train": {}, "global_step": step, "state_dict": {"w": torch.ones(9)}}, tmp_path / name)

    assert newest_checkpoint(tmp_path) is None
    for name, step in (("best.ckpt", 5), ("last.ckpt", 5), ("older.ckpt", 4), ("newer.ckpt", 9)):
        write(name, step)
    data = (tmp_path / "newer.ckpt").read_bytes()
    (tmp_path / "newer.ckpt").write_bytes(data[: len(data) // 2])
    torch.save({"state_dict": {}, "global_step": 10}, tmp_path / "foreign.ckpt")
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.name == "last.ckpt"
    said = caplog.messages
    assert len(said) == 2
    assert "newer.ckpt: " in said[1]
    happened("The newest checkpoint is cut in half", said[1])
    happened("A file of another program lies among the checkpoints", said[0])


@pytest.mark.fault("Disks and checkpoints")
def test_there_must_be_something_to_go_on_with(videos: Path, config: Config, happened: Happened) -> None:
    with pytest.raises(UserError, match=r"ckpt_path=last: no checkpoint in .*/run/checkpoints") as error:
        train(config(*settings(videos, 1, "ckpt_path=last")))
    happened("`ckpt_path=last` where there is no checkpoint", error.value)


def fails_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that gets no further."""

    def on_train_batch_start(task: VideoClassifier, *args: Any) -> None:
        if task.global_step == step:
            raise ConnectionError("the plug was pulled")

    monkeypatch.setattr(VideoClassifier, "on_train_batch_start", on_train_batch_start)


def logged_by_tensorboard(run: Path) -> list[tuple[str, int]]:
    """Name and step of each point that it would show."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="an extra")
    events = accumulator.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    names = [name for name in events.Tags()["scalars"] if name != "epoch"]  # which Lightning adds to every row
    return [(name, event.step) for name in names for event in events.Scalars(name)]


def wandb_records(file: Path) -> list[Any]:
    """What a file of wandb holds: records of protobuf in LevelDB's log format."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, part, records = file.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # too little room for a header: the next block
            at += 32768 - at % 32768
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        part += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part of one
            records.append(Record.FromString(part))
            part = b""
    return records


def logged_by_wandb(run: Path) -> list[tuple[str, int]]:
    """Likewise, of all its files."""
    points = []
    files = sorted(run.glob("wandb/offline-run-*/*.wandb"))
    assert len({file.stem for file in files}) == 1
    for file in files:
        written_by_s = time.monotonic() + 60  # by a process of wandb's own
        while not any(record.HasField("exit") for record in wandb_records(file)):
            assert time.monotonic() < written_by_s
            time.sleep(0.1)
        for record in wandb_records(file):
            row = {
                item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
            }
            points += [(name, row["trainer/global_step"]) for name in row if name.startswith(("train/", "val/"))]
    return points


@pytest.mark.fault("Runs that end")
@pytest.mark.parametrize(
    ("logger", "points"),
    [("tensorboard", logged_by_tensorboard), pytest.param("wandb", logged_by_wandb, marks=pytest.mark.slow)],
)
def test_no_step_is_logged_twice(
    videos: Path,
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    happened: Happened,
    logger: str,
    points: Callable[[Path], list[tuple[str, int]]],
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    choices = settings(videos, 3, f"logger={logger}", "callbacks.last.minutes=60", "trainer.log_every_n_steps=1")
    with monkeypatch.context() as patch:  # in the second epoch, with a step logged behind the last checkpoint
        fails_at(5, patch)
        with pytest.raises(ConnectionError):
            train(config(*choices))
    assert ("train/loss_step", 3) in points(tmp_path / "run")
    train(config(*choices, "resume=auto"))
    found = points(tmp_path / "run")
    assert len(found) == len(set(found))
    assert [step for name, step in found if name == "train/loss_step"] == list(range(9))
    assert [step for name, step in found if name == "val/top1"] == [2, 5, 8]
    happened(f"logger={logger}, and the run ends behind its last checkpoint", "resumed, no step is logged twice")
