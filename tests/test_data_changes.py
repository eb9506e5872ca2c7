"""A run that is resumed on other data than it was trained on says so, and stops."""

import os
import shutil
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Happened
from omegaconf import DictConfig

from vivit_train.data.digest import digest, unpacked
from vivit_train.data.manifest import Manifest, Splits
from vivit_train.errors import UserError
from vivit_train.run import train

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
        (overwrite, "files overwritten (size or time): 1 (train/"),
        (relabel, "gone: 2 ("),
        (add, "new: 1 (train/train/approach/new\\x1b[31m.mp4)"),
        (touch, "files overwritten (size or time): 1 (test/"),
    ],
)
def test_data_that_changed_is_named_and_stops_a_resumed_run(
    change: Callable[[Path], None], words: str, videos: Path, config: Config, tmp_path: Path, happened: Happened
) -> None:
    root = tmp_path / "videos"
    shutil.copytree(videos, root)
    data = ("data=folder", f"data.root={root}", "recipe.epochs=2", "resume=auto", "recipe.global_batch=16")
    train(config(*data))
    change(root)
    with pytest.raises(UserError, match="the data is not what") as error:
        train(config(*data, "recipe.epochs=3"))
    assert words in str(error.value).replace("val/train", "train/train")
    assert "data.changed=accept" in str(error.value)
    train(config(*data, "recipe.epochs=3", "data.changed=accept"))
    assert words.partition(" (")[0] in (tmp_path / "run/data_changes.txt").read_text()
    train(config(*data, "recipe.epochs=4"))  # the new checkpoints know the data as it is now
    happened(f"A data set in which a resumed run finds another video ({change.__name__})", error.value)


def test_a_digest_of_a_stranger_is_bounded() -> None:
    bomb = zlib.compress(b"[" + b" " * (1 << 29) + b"]", 9)
    for packed in (
        bomb,
        b"",
        b"x" * 9,
        zlib.compress(b"[" * 100_000),
        zlib.compress(b"{}"),
        zlib.compress(b"[[1]]"),
    ):
        tensor: Any = torch.from_numpy(np.frombuffer(packed, np.uint8).copy())
        with pytest.raises(UserError, match="its table of clips is damaged"):
            unpacked(tensor, "x.ckpt")
    for other in (None, 3, torch.zeros(3), torch.zeros(2, 2, dtype=torch.uint8)):
        with pytest.raises(UserError, match="its table of clips is damaged"):
            unpacked(other, "x.ckpt")


@pytest.mark.slow
def test_a_digest_of_300_000_clips_is_quick_and_small(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i:06d}.mp4" for i in range(300_000)]
    for path in paths:
        path.touch()
    names = np.array([str(path) for path in paths], np.dtypes.StringDType())
    ids = np.array([path.name for path in paths], np.dtypes.StringDType())
    manifest = Manifest(names, np.arange(300_000)[:, None] % 400, ids)
    classes = {"": tuple(f"class {i}" for i in range(400))}
    splits = Splits(
        classes=classes, train=manifest, val=manifest.take(np.arange(1)), test=None, source="", missing={}
    )
    began = time.process_time()
    assert len(digest(splits)) < 10e6
    assert time.process_time() - began < 6
