"""Hundreds of thousands of videos: their annotations are soon read, and small in however many processes."""

import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vivit_train.data.annotations.csv_file import read_csv
from vivit_train.data.annotations.folder import read_folder
from vivit_train.data.annotations.table import ClipTable, Splits
from vivit_train.data.datamodule import VideoDataModule
from vivit_train.data.dataset import TrainDataset

pytestmark = pytest.mark.slow
FOLDERS = 400


def names(n: int, split: str = "train") -> list[str]:
    """Paths as Kinetics has them, relative to a root."""
    ids = [f"{i * 7919:011x}_{i % 300:06d}_{i % 300 + 10:06d}" for i in range(n)]
    return [f"{split}/class {i % FOLDERS:03d} of actions/{video}.mp4" for i, video in enumerate(ids)]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300,000 empty files in train and 400 in val, in 400 folders each, and CSV files that list them."""
    root = tmp_path_factory.mktemp("many")
    for split, n in (("train", 300_000), ("val", FOLDERS)):
        listed = names(n, split)
        for name in listed[:FOLDERS]:
            (root / name).parent.mkdir(parents=True)
        for name in listed:
            os.close(os.open(root / name, os.O_CREAT))
        lines = [f"{name} {i % FOLDERS}\n" for i, name in enumerate(listed)]
        (root / f"{split}.csv").write_text("".join(lines))
    return root


@pytest.mark.parametrize(
    ("reader", "files"),
    [(read_csv, {"train": "train.csv", "val": "val.csv"}), (read_folder, {})],
    ids=["csv", "folder"],
)
def test_reading_300_000_rows_takes_seconds(
    reader: Callable[..., Splits], files: dict[str, str], many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def counting(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            return function(*args, **kwargs)

        return call

    for name in ("stat", "lstat", "access", "open"):
        monkeypatch.setattr(os, name, counting(getattr(os, name)))
    start_s = time.process_time()
    splits = VideoDataModule("many", str(many), reader, **files).splits  # type: ignore[arg-type]
    taken_s = time.process_time() - start_s
    print(f"{taken_s:.2f} s of CPU time, {calls} looks at files")
    assert len(splits.train) == 300_000
    assert calls < 20 * FOLDERS
    assert taken_s < 5


# annotations in memory

ROWS, WORKERS = 500_000, 4


def pss_bytes(pid: int | str) -> int:
    """A process's memory; of what it shares, its share."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def touch(clips: TrainDataset, rows: int, seed: int, pipe: Connection) -> None:
    """What a loader process does to the annotations, over an epoch."""
    for row in np.random.default_rng(seed).permutation(rows):
        assert str(clips.manifest.paths[row]).endswith(str(clips.manifest.ids[row]))
        assert clips.manifest.labels[row].shape == (1,)
    pipe.send(None)
    pipe.recv()  # measured meanwhile


def used_bytes(rows: int) -> int:
    """By this process and its workers together, when they have touched every row."""
    relative, strings = names(rows), np.dtypes.StringDType()
    paths = np.array([f"/datasets/kinetics700/{name}" for name in relative], strings)
    manifest = ClipTable(paths, np.arange(rows)[:, None] % FOLDERS, np.array(relative, strings))
    data = VideoDataModule("many", "", read_csv)
    clips = TrainDataset(manifest, data.transform, data.sampling, short_side=256, seed=0)
    del relative
    context, pipes, workers = multiprocessing.get_context("fork"), [], []
    for seed in range(WORKERS):
        here, there = context.Pipe()
        pipes.append(here)
        workers.append(context.Process(target=touch, args=(clips, rows, seed, there)))
        workers[-1].start()
    for pipe in pipes:
        pipe.recv()
    used = sum(map(pss_bytes, ["self", *(worker.pid for worker in workers if worker.pid)]))
    for pipe, worker in zip(pipes, workers, strict=True):
        pipe.send(None)
        worker.join()
    return used


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="no /proc")
def test_500_000_rows_take_little_memory_in_all_processes_together() -> None:
    few = used_bytes(1000)
    taken = used_bytes(ROWS) - few
    print(f"{taken / 1e6:.0f} MB")
    assert taken < 200e6
