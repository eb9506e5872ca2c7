"""Training goes on over whatever files a crawl holds; where a loader process dies, its video is named."""

import csv
import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT, SHARED, Happened
from omegaconf import DictConfig
from zoo import zoo

from vivit_train.build import build_data
from vivit_train.config import derive
from vivit_train.data import dataset
from vivit_train.data.annotations.folder import read_folder
from vivit_train.data.datamodule import VideoDataModule
from vivit_train.data.dataset import TrainDataset
from vivit_train.data.video.decode import read_frames
from vivit_train.data.video.scan import probe
from vivit_train.run import train
from vivit_train.training.module import VideoClassifier
from vivit_train.utils.errors import UserError, VideoError

Config = Callable[..., DictConfig]
ODD = sorted((SHARED / "videos" / "odd").glob("*/*"))
GOOD = ("good", "whole", "one", "twice")
BAD = ("empty", "text", "noise", "audio", "cut0")


@pytest.fixture
def crawl(videos: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """train/{a,b}/*: 48 good videos, a zoo with few of its lies, or all and odd files too; val: every eighth."""
    (tmp_path / "zoo").mkdir()
    good = [(f"good{i}.mp4", path) for i, path in enumerate(sorted(videos.glob("*/*/*.mp4")))]
    strange = zoo(tmp_path / "zoo")
    lies = [path for path in strange if "_" in path.name]
    everything = getattr(request, "param", "zoo") == "everything"
    others = [path for path in strange if path not in lies] + (lies + ODD if everything else lies[::6])
    for i, (name, path) in enumerate([*good, *((path.name, path) for path in others)]):
        for split in ("train", "val")[: 1 if i // 2 % 8 else 2]:
            folder = tmp_path / "crawl" / split / "ab"[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to(path)
    return tmp_path / "crawl"


@pytest.fixture
def trained_on(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Every batch that a model is trained on, as it comes."""
    batches: list[dict[str, Any]] = []
    step = VideoClassifier.training_step

    def record(task: VideoClassifier, batch: dict[str, Any], index: int) -> torch.Tensor:
        batches.append(batch)
        return step(task, batch, index)

    monkeypatch.setattr(VideoClassifier, "training_step", record)
    return batches


def bad_videos(run: Path) -> list[dict[str, str]]:
    with (run / "bad_videos.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.fault("Videos")
@pytest.mark.parametrize("crawl", ["zoo", pytest.param("everything", marks=pytest.mark.slow)], indirect=True)
def test_training_goes_on_over_a_crawl(
    crawl: Path, trained_on: list[dict[str, Any]], config: Config, tmp_path: Path, happened: Happened
) -> None:
    cfg = config("data=folder", f"data.root={crawl}", "trainer.max_epochs=2", "data.num_workers=2")
    cfg.data.max_bad_fraction, cfg.data.timeout_s = 1, 60
    train(cfg)
    listed = bad_videos(tmp_path / "run")
    bad = {split: {row["path"] for row in listed if row["split"] == split} for split in ("train", "val")}
    assert len(bad["train"]) + len(bad["val"]) == len(listed)  # each once
    for row in listed:
        assert row["reason"]
        assert not Path(row["path"]).name.startswith(GOOD)
        with pytest.raises(VideoError):
            read_frames(row["path"], range(probe(row["path"]).num_frames))
    results = json.loads((tmp_path / "run/metrics.json").read_text())
    assert results["failed"] == len(bad["val"]) > 0
    assert (results["split"], results["n"]) == ("val", len(list(crawl.glob("val/*/*"))))

    # again, with good videos in the bad ones' places
    for name in bad["train"]:
        Path(name).unlink()
        Path(name).symlink_to(next(crawl.glob("train/a/good*")).resolve())
    data = build_data(derive(cfg))
    loader, paths = data.train_dataloader(), data.splits.train.paths
    same = 0
    for got, expected in zip(trained_on[: len(trained_on) // 2], loader, strict=True):  # the first epoch
        for i, path in enumerate(paths[expected["index"]].tolist()):
            name = Path(path).name
            assert path in bad["train"] or not name.startswith(BAD)
            if path not in bad["train"]:
                same += 1
                # where a damaged video's decoder gives up is up to its threads, and so whose pixels one gets
                for key in ("index", "label", "frame_numbers", *["video"] * name.startswith(GOOD)):
                    assert torch.equal(got[key][i], expected[key][i]), (name, key)
    assert same > len(paths) / 2
    names: dict[str, list[str]] = defaultdict(list)
    for row in listed:
        if row["split"] == "train":
            names[re.sub(r"\d+", "N", row["reason"])].append(Path(row["path"]).name)
    for reason, files in names.items():
        outcome = f"{reason}; each named once in bad_videos.csv, the clips of all others the same as without them"
        happened(f"In a training set: {', '.join(files)}", outcome)


@pytest.mark.fault("Videos")
def test_a_crawl_worse_than_its_budget_stops_training(
    crawl: Path, config: Config, tmp_path: Path, happened: Happened
) -> None:
    with pytest.raises(UserError) as error:
        train(config("data=folder", f"data.root={crawl}", "data.num_workers=2", "data.max_bad_fraction=0.02"))
    listed = bad_videos(tmp_path / "run")
    n = len(list(crawl.glob("train/*/*")))
    budget = 0.02 * n
    assert budget < len(listed) <= budget + 20 * 8  # what one batch may add
    assert f"{len(listed)} of {n} training videos cannot be read" in str(error.value)
    assert f"{listed[0]['path']}: {listed[0]['reason']}" in str(error.value)
    assert f"{tmp_path}/run/bad_videos.csv" in str(error.value)
    happened("More bad videos than `data.max_bad_fraction` allows", error.value)


# loader processes that die


def dies_reading(victim: Path, how: str) -> Callable[..., Any]:
    """`read_frames`, but for one video that ends its process."""

    def read(path: str, *args: Any, **kwargs: Any) -> Any:
        if path == str(victim):
            os.kill(os.getpid(), signal.SIGKILL) if how == "killed" else ctypes.string_at(0)
        return read_frames(path, *args, **kwargs)

    return read


def by_class(videos: Path) -> list[str]:
    return ["data=folder", f"data.root={videos}", "data.num_workers=2"]


@pytest.mark.fault("Videos")
def test_a_video_whose_process_is_killed_in_training_is_named(
    videos: Path, config: Config, monkeypatch: pytest.MonkeyPatch, happened: Happened
) -> None:
    victim = sorted(videos.glob("train/*/*.mp4"))[5]
    monkeypatch.setattr(dataset, "read_frames", dies_reading(victim, "killed"))
    words = rf"process \d+ died reading {victim} \((Killed|cause unknown)\): if .*memory, lower.*doctor"
    with pytest.raises(UserError, match=words) as error:
        train(config(*by_class(videos)))
    happened("SIGKILL to a loader process over a video, as where memory runs out", error.value)


@pytest.mark.slow
@pytest.mark.fault("Videos")
@pytest.mark.parametrize("split", ["val", "test"])
def test_a_video_that_crashes_its_decoder_is_named_in_evaluation_too(
    split: str, videos: Path, config: Config, monkeypatch: pytest.MonkeyPatch, happened: Happened
) -> None:
    victim = sorted(videos.glob(f"{split}/*/*.mp4"))[-1]
    monkeypatch.setattr(dataset, "read_frames", dies_reading(victim, "crashes"))
    with pytest.raises(UserError, match=rf"died reading {victim} \(.*leave it out") as error:
        train(config(*by_class(videos)))
    happened(f"A video of the {split} split crashes its decoder", error.value)


SMALL = {
    "frames": 4,
    "crop": 32,
    "short_side": 36,
    "global_batch_size": 8,
    "micro_batch_size": 4,
    "num_workers": 2,
}


class Dying(TrainDataset):
    """Dies over row 5, with its video open or when that is closed."""

    how = "kill"

    def load(self, row: int) -> list[dict[str, Any]]:
        clips = super().load(row)
        with self.video_reader.watchdog(str(self.manifest.paths[row])) if self.how != "idle" else nullcontext():
            if row == 5:
                os.kill(os.getpid(), signal.SIGKILL)
        return clips


# the first loader of a process sees how its workers die, hence a process for each
@pytest.mark.slow
@pytest.mark.fault("Videos")
@pytest.mark.parametrize("how", ["kill", "idle"])
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_who_died_and_how(how: str, start: str, videos: Path, happened: Happened) -> None:
    code = (
        "import test_faulty_training as t\n"
        f"if __name__ == '__main__': t.train_until_death({str(videos)!r}, {how!r}, {start!r})\n"
    )
    path = os.pathsep.join([str(ROOT / "tests"), str(ROOT / "tests/data")])
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    activity = f"reading {sorted(videos.glob('train/*/*.mp4'))[5]}" if how == "kill" else "between two videos"
    assert re.search(rf"process \d+ died {activity} \(Killed\): if the job ran out of memory", child.stdout), child
    doing = "over a video" if how == "kill" else "between two videos"
    happened(f"SIGKILL to a loader process (of {start}) {doing}", child.stdout)


def train_until_death(videos: str, how: str, start: str) -> None:
    data = VideoDataModule("demo", videos, read_folder, **SMALL)
    clips = Dying(data.splits.train, data.transform, data.sampling, short_side=36, seed=0)
    clips.how = how
    batches = [[(0, 0, row)] for row in range(len(data.splits.train))]
    try:
        with data.translate_worker_errors():
            for _ in data.loader(clips, batch_sampler=batches, multiprocessing_context=start):
                pass
    except UserError as error:
        print(error)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("unshare") or os.geteuid(), reason="only root may make /dev/shm small")
@pytest.mark.fault("Videos")
@pytest.mark.parametrize("augment_on", ["worker", "device"])
def test_shared_memory_that_is_full(augment_on: str, videos: Path, happened: Happened) -> None:
    code = f"""
from vivit_train.data.datamodule import TrainDataset, VideoDataModule
from vivit_train.data.annotations.folder import read_folder
data = VideoDataModule("demo", {str(videos)!r}, read_folder, augment_on={augment_on!r}, **{SMALL})
with data.translate_worker_errors():
    list(data.train_dataloader())
"""
    small = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=100k none /dev/shm && exec "$@"', "sh"]
    child = subprocess.run([*small, sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    if "mount:" in child.stderr:
        pytest.skip("no mounts here")
    said = child.stderr.partition("LoaderDiedError: ")[2]
    assert said.startswith("the shared memory (/dev/shm) through which loader processes pass clips is full")
    happened(f"/dev/shm has 100 kB, data.augment_on={augment_on}", said.splitlines()[0])
