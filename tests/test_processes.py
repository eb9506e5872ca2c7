"""Several processes train as one does, and end together. They are forked here, in the environment that torchrun makes."""

import csv
import multiprocessing
import os
import shutil
import signal
import socket
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from vivit_train.data.datamodule import TrainBatches
from vivit_train.errors import exit_with_message
from vivit_train.run import evaluate, train
from vivit_train.task import VideoClassification

Config = Callable[..., DictConfig]
fork = multiprocessing.get_context("fork")  # a new interpreter takes ten seconds to import lightning
DDP = ["trainer=ddp_cpu"]
FSDP = ["trainer=fsdp", "trainer.devices=2"]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def start(*configs: DictConfig) -> list[Any]:
    """A process of one job for each configuration."""
    port = free_port()

    def run(rank: int) -> None:
        if len(configs) > 1:
            os.environ |= {
                "TORCHELASTIC_RUN_ID": "test",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "WORLD_SIZE": str(len(configs)),
                "LOCAL_WORLD_SIZE": str(len(configs)),
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
            }
            rank_zero_only.rank = rank  # read from the environment when lightning is imported
        exit_with_message(partial(train, configs[rank]))

    torch.set_num_threads(1)  # a forked process must not meet the threads of its parent
    processes = [fork.Process(target=run, args=(rank,)) for rank in range(len(configs))]
    for process in processes:
        process.start()
    return processes


def codes(processes: Sequence[Any], timeout_s: float = 60) -> list[int | None]:
    """The exit codes; None of a process that hangs, which is killed."""
    for process in processes:
        process.join(timeout_s)
    ended = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return ended


@pytest.fixture(scope="module")
def odd_videos(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 videos to train on, 7 to validate and 15 to test: not the same number for two processes."""
    root = tmp_path_factory.mktemp("odd") / "videos"
    shutil.copytree(videos, root)
    for split in ("val", "test"):
        next(root.glob(f"{split}/*/*.mp4")).unlink()
    return root


def settings(videos: Path, micro_batch: int, *others: str) -> list[str]:
    """Three steps an epoch, two micro-batches in each; a checkpoint after every step."""
    return [
        "data=folder",
        f"data.root={videos}",
        f"data.micro_batch={micro_batch}",
        "recipe.epochs=2",
        "recipe.mixup=0",
        "recipe.drop_path=0",
        "callbacks.last.minutes=0",
        "eval.views=2x3",
        *others,
    ]


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[list[list[int]]]]:
    """What processes were given: by rank, of each micro-batch the seed of its mixing and the videos."""
    step = VideoClassification.training_step

    def record(task: VideoClassification, batch: dict[str, Any], index: int) -> torch.Tensor:
        numbers = [torch.initial_seed(), *batch["index"].tolist()]
        name = Path(task.metadata["config"]["run_dir"]).parent / f"seen{task.global_rank}"
        with open(name, "a") as file:
            print(*numbers, file=file)
        return step(task, batch, index)

    monkeypatch.setattr(VideoClassification, "training_step", record)

    def read(folder: str) -> list[list[list[int]]]:
        files = sorted((tmp_path / folder).glob("seen*"))
        return [[[int(n) for n in line.split()] for line in file.read_text().splitlines()] for file in files]

    return read


def moved(tmp_path: Path, name: str) -> Path:
    """What a job left, out of the way of the next one."""
    folder = tmp_path / name
    folder.mkdir()
    for path in [tmp_path / "run", *tmp_path.glob("seen*")]:
        path.rename(folder / path.name)
    return folder / "run"


def close(one: Path, other: Path) -> None:
    """Both runs ended in the same weights, after the same curves."""
    ours, theirs = (torch.load(run / "checkpoints/last.ckpt", weights_only=True) for run in (one, other))
    assert (ours["global_step"], ours["epoch"]) == (theirs["global_step"], theirs["epoch"]) == (6, 1)
    assert ours["state_dict"].keys() == theirs["state_dict"].keys()
    for name, value in ours["state_dict"].items():
        torch.testing.assert_close(theirs["state_dict"][name], value, atol=1e-5, rtol=1e-4, msg=name)
    curves = [list(csv.DictReader((run / "metrics.csv").open())) for run in (one, other)]
    for name in ("train/loss_epoch", "val/loss", "val/n", "val/top1", "train/grad_norm"):
        a, b = ([float(row[name]) for row in rows if row.get(name)] for rows in curves)
        assert a, name
        assert b == pytest.approx(a, abs=1e-5, rel=1e-4), name


def predictions(run: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((run / "predictions.csv").open()))


@pytest.mark.parametrize("strategy", [DDP, pytest.param(FSDP, id="fsdp")])
def test_two_processes_train_as_one(
    strategy: list[str], odd_videos: Path, config: Config, tmp_path: Path, seen: Callable[[str], Any]
) -> None:
    log = "trainer.log_every_n_steps=1"
    assert codes(start(config(*settings(odd_videos, 4, log)))) == [0]
    one = moved(tmp_path, "one")
    both = config(*settings(odd_videos, 2, log, *strategy, "trainer.accelerator=cpu"))
    assert codes(start(both, both)) == [0, 0]
    two = moved(tmp_path, "two")
    close(one, two)

    (whole,), (first, second) = seen("one"), seen("two")
    assert len(whole) == len(first) == len(second) == 12
    assert [a[1:] + b[1:] for a, b in zip(first, second, strict=True)] == [batch[1:] for batch in whole]
    assert all(a[0] != b[0] for a, b in zip(first, second, strict=True))  # the draws of mixing

    expected, found = predictions(one), predictions(two)
    assert len({row["id"] for row in expected}) == len(expected) == 15
    assert [row["id"] for row in found] == [row["id"] for row in expected]
    for a, b in zip(expected, found, strict=True):
        logits = [name for name in a if name.startswith("logit")]
        assert [float(b[k]) for k in logits] == pytest.approx([float(a[k]) for k in logits], abs=1e-4)
    assert '"n": 15' in (two / "metrics.json").read_text()
