"""A run that is resumed on other data than it was trained on says so, and stops."""

import csv
import os
import shutil
import signal
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from helpers import Happened
from omegaconf import DictConfig, open_dict

from vivit_train.data.annotations.table import ClipTable, Splits
from vivit_train.data.digest import digest, unpacked
from vivit_train.run import train
from vivit_train.training.optim import warmup_cosine
from vivit_train.utils.errors import StoppedError, UserError

Config = Callable[..., DictConfig]
FIRST = "train/approach/0000.mp4"


def delete(root: Path) -> None:
    (root / FIRST).unlink()


def overwrite(root: Path) -> None:
    shutil.copyfile(root / "train/recede/0001.mp4", root / FIRST)


def relabel(root: Path) -> None:
    for here, there in (("approach", "recede"), ("recede", "approach")):
        (root / f"train/{here}/0000.mp4").rename(root / f"train/{there}/x{here}.mp4")


def add(root: Path) -> None:
    shutil.copy(root / FIRST, root / "train/approach/new\x1b[31m.mp4")


def touch(root: Path) -> None:
    os.utime(root / "test/recede/0000.mp4", (1e9, 1e9))


@pytest.mark.fault("Disks and checkpoints")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (delete, "gone: 1 (train/train/approach/0000.mp4)"),
        pytest.param(overwrite, "files overwritten (size or time): 1 (train/", marks=pytest.mark.slow),
        pytest.param(relabel, "gone: 2 (", marks=pytest.mark.slow),
        pytest.param(add, "new: 1 (train/train/approach/new\\x1b[31m.mp4)", marks=pytest.mark.slow),
        pytest.param(touch, "files overwritten (size or time): 1 (test/", marks=pytest.mark.slow),
    ],
)
def test_data_that_changed_is_named_and_stops_a_resumed_run(
    change: Callable[[Path], None], words: str, videos: Path, config: Config, tmp_path: Path, happened: Happened
) -> None:
    root = tmp_path / "videos"
    shutil.copytree(videos, root)
    data = ("data=folder", f"data.root={root}", "trainer.max_epochs=2", "resume=auto", "global_batch_size=16")
    train(config(*data))
    change(root)
    with pytest.raises(UserError, match="the data differs from what") as error:
        train(config(*data, "trainer.max_epochs=3"))
    assert words in str(error.value).replace("val/train", "train/train")
    assert "data.changed=accept" in str(error.value)
    train(config(*data, "trainer.max_epochs=3", "data.changed=accept"))
    assert words.partition(" (")[0] in (tmp_path / "run/data_changes.txt").read_text()
    train(config(*data, "trainer.max_epochs=4"))  # the new checkpoints know the data as it is now
    happened(f"A data set in which a resumed run finds another video ({change.__name__})", error.value)


@pytest.mark.fault("Strangers' files")
def test_a_digest_of_a_stranger_is_bounded(happened: Happened) -> None:
    bomb = zlib.compress(b"[" + b" " * (1 << 28) + b"]", 9)
    for packed in (
        bomb,
        b"",
        b"x" * 9,
        zlib.compress(b"[" * 100_000),
        zlib.compress(b"{}"),
        zlib.compress(b"[[1]]"),
    ):
        tensor: Any = torch.from_numpy(np.frombuffer(packed, np.uint8).copy())
        with pytest.raises(UserError, match="the table of clips is damaged"):
            unpacked(tensor, "x.ckpt")
    for other in (None, 3, torch.zeros(3), torch.zeros(2, 2, dtype=torch.uint8)):
        with pytest.raises(UserError, match="the table of clips is damaged") as error:
            unpacked(other, "x.ckpt")
    happened("A checkpoint whose table of clips unpacks to 500 MB, or is none", error.value)


@pytest.mark.slow
def test_a_digest_of_300_000_clips_is_quick_and_small(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i:06d}.mp4" for i in range(300_000)]
    for path in paths:
        path.touch()
    names = np.array([str(path) for path in paths], np.dtypes.StringDType())
    ids = np.array([path.name for path in paths], np.dtypes.StringDType())
    manifest = ClipTable(names, np.arange(300_000)[:, None] % 400, ids)
    classes = {"": tuple(f"class {i}" for i in range(400))}
    splits = Splits(
        classes=classes, train=manifest, val=manifest.select(np.arange(1)), test=None, source="", missing={}
    )
    began = time.process_time()
    assert len(digest(splits)) < 10e6
    assert time.process_time() - began < 6


class StopAfter(L.Callback):
    """Ends a run as a scheduler would, after some steps of it."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.steps -= 1
        if self.steps == 0 and batch_idx + 1 < trainer.num_training_batches:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_train_epoch_end(self, *args: Any) -> None:
        if self.steps == 0:
            os.kill(os.getpid(), signal.SIGTERM)


def stop_after(cfg: DictConfig, steps: int) -> None:
    with open_dict(cfg):
        cfg.callbacks.stop = {"_target_": f"{__name__}.StopAfter", "steps": steps}
    with pytest.raises(StoppedError):
        train(cfg)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("clips", "done"),
    [(16, 5), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((24, 5), (16, 6), (48, 5), (48, 6)))],
)
def test_a_run_goes_on_with_epochs_of_any_length(
    clips: int, done: int, videos: Path, config: Config, tmp_path: Path
) -> None:
    """The learning rate comes to its end with the last step of the last epoch. Epochs had three steps; the run has
    `done` when the data changes, and is stopped once more."""
    root, now = tmp_path / "videos", clips // 8
    shutil.copytree(videos, root)
    data = (
        "data=folder",
        f"data.root={root}",
        "trainer.max_epochs=4",
        "resume=auto",
        "global_batch_size=8",
        "trainer.log_every_n_steps=1",
    )
    stop_after(config(*data), done)
    for folder in (root / "train").iterdir():
        if clips < 24:
            (folder / "0000.mp4").unlink()
        elif clips > 24:
            for name in ("0000", "0001", "0002"):
                shutil.copy(folder / f"{name}.mp4", folder / f"new{name}.mp4")
    if clips != 24:
        with pytest.raises(UserError, match=f"an epoch has {now} steps now and had 3"):
            train(config(*data))
    accept = (*data, "data.changed=accept")
    stop_after(config(*accept), 2)
    train(config(*accept))

    start = now * 2 if done == 6 else now + min(done - 3, now - 1)  # the place in the new schedule
    with (tmp_path / "run/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    rates = {int(row["step"]): float(row["train/lr"]) for row in rows if row["train/lr"]}
    cfg = config(*data)
    factor = warmup_cosine(int(now * cfg.scheduler.warmup_epochs), 4 * now)
    expected = [cfg.optimizer.lr * factor(place) for place in range(start, 4 * now)]
    assert sorted(rates) == list(range(done + len(expected)))
    assert [rates[step] for step in range(done, len(rates))] == pytest.approx(expected, rel=1e-4)
    assert [int(row["epoch"]) for row in rows if row["val/score"]] == [0, 1, 2, 3]
