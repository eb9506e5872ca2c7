"""Several processes train as one does, and end together. They are forked, with the environment of torchrun."""

import csv
import json
import multiprocessing
import os
import shutil
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Happened
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from vivit_train.data.bad_videos import BadVideoLog
from vivit_train.data.sampler import GlobalBatchSampler
from vivit_train.run import evaluate, train
from vivit_train.training.module import VideoClassifier
from vivit_train.utils import distributed
from vivit_train.utils.errors import UserError, exit_with_message

Config = Callable[..., DictConfig]
fork = multiprocessing.get_context("fork")  # a new interpreter takes ten seconds to import lightning
DDP = ["trainer=ddp_cpu"]
FSDP = ["trainer=fsdp", "trainer.devices=2"]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def start(*configs: DictConfig, main: Callable[[DictConfig], object] = train) -> list[Any]:
    """A process of one job for each configuration."""
    port = free_port()

    def run(rank: int) -> None:
        torch.set_num_threads(1)  # makes the pool of threads anew, before several threads ask for it at once
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
        exit_with_message(partial(main, configs[rank]))

    torch.set_num_threads(1)  # a forked process must not meet the threads of its parent
    job = [fork.Process(target=run, args=(rank,), daemon=True) for rank in range(len(configs))]
    for process in job:
        process.start()
    return job


def codes(job: Sequence[Any], timeout_s: float = 60) -> list[int | None]:
    """The exit codes; None of a process that hangs, which is killed."""
    for process in job:
        process.join(timeout_s)
    ended = [process.exitcode for process in job]
    for process in job:
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


def settings(videos: Path, micro_batch_size: int, *others: str) -> list[str]:
    """Three steps an epoch, two micro-batches in each; a checkpoint after every step."""
    return [
        "data=folder",
        f"data.root={videos}",
        f"micro_batch_size={micro_batch_size}",
        "trainer.max_epochs=2",
        "recipe=kinetics400",
        "init=none",
        "scheduler.warmup_epochs=0",
        "trainer.log_every_n_steps=1",
        "callbacks.last.minutes=0",
        "callbacks.contact_sheet=null",
        "model.temporal_depth=1",
        "eval.views=2x1",
        *others,
    ]


@pytest.fixture
def hooked(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[VideoClassifier, Any], None]], None]:
    """Has something called before each training step, in the processes that are started after that."""
    step = VideoClassifier.training_step

    def hook(before: Callable[[VideoClassifier, Any], None]) -> None:
        def hooked_step(task: VideoClassifier, batch: Any, index: int) -> torch.Tensor:
            before(task, batch)
            return step(task, batch, index)

        monkeypatch.setattr(VideoClassifier, "training_step", hooked_step)

    return hook


def record(task: VideoClassifier, batch: Any) -> None:
    """Of each micro-batch the seed of its mixing, and its videos."""
    with open(Path(task.metadata["config"]["run_dir"]) / f"seen{task.global_rank}", "a") as file:
        print(torch.initial_seed(), *batch["index"].tolist(), file=file)


def recorded(run: Path) -> list[list[list[int]]]:
    """By rank."""
    files = sorted(run.glob("seen*"))
    return [[[int(n) for n in line.split()] for line in file.read_text().splitlines()] for file in files]


def dies_at(step: int) -> Callable[[VideoClassifier, Any], None]:
    """A hook that kills the process after so many optimizer steps."""

    def die(task: VideoClassifier, batch: Any) -> None:
        if task.trainer.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    return die


@pytest.fixture
def alone(odd_videos: Path, config: Config, tmp_path: Path, hooked: Callable[..., None]) -> Path:
    """The run of one process."""
    kept = odd_videos.parent / "alone"
    if not kept.exists():
        hooked(record)
        assert codes(start(config(*settings(odd_videos, 4)))) == [0]
        (tmp_path / "run").rename(kept)
    return kept


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
        assert len(set(a)) > 1 or name in ("val/n", "val/top1")
        assert b == pytest.approx(a, abs=1e-5, rel=1e-4), name


def same_results(one: Path, other: Path) -> float:
    """Every video once, with the same logits up to rounding; returns the largest relative difference."""
    expected, found = (list(csv.DictReader((run / "predictions.csv").open())) for run in (one, other))
    assert len({row["id"] for row in expected}) == len(expected) == 15
    assert [row["id"] for row in found] == [row["id"] for row in expected]
    largest = 0.0
    for a, b in zip(expected, found, strict=True):
        logits = [name for name in a if name.startswith("logit")]
        assert [float(b[k]) for k in logits] == pytest.approx([float(a[k]) for k in logits], abs=1e-4)
        largest = max(largest, *(abs(float(a[k]) - float(b[k])) / max(abs(float(a[k])), 1e-3) for k in logits))
    assert json.loads((other / "metrics.json").read_text())["n"] == 15
    return largest


@pytest.mark.parametrize(
    "strategy", [pytest.param(DDP, id="ddp"), pytest.param(FSDP, id="fsdp", marks=pytest.mark.slow)]
)
def test_two_processes_train_as_one(
    strategy: list[str], alone: Path, odd_videos: Path, config: Config, tmp_path: Path, hooked: Callable[..., None]
) -> None:
    hooked(record)
    both = config(*settings(odd_videos, 2, *strategy, "trainer.accelerator=cpu"))
    assert codes(start(both, both)) == [0, 0]
    close(alone, tmp_path / "run")

    (whole,), (first, second) = recorded(alone), recorded(tmp_path / "run")
    assert len(whole) == len(first) == len(second) == 12
    assert [a[1:] + b[1:] for a, b in zip(first, second, strict=True)] == [batch[1:] for batch in whole]
    assert all(a[0] != b[0] for a, b in zip(first, second, strict=True))  # the draws of mixing

    same_results(alone, tmp_path / "run")


@pytest.mark.fault("Several processes")
def test_two_processes_evaluate_as_one(
    alone: Path, odd_videos: Path, config: Config, tmp_path: Path, happened: Happened
) -> None:
    """An odd number of videos, of data that are named anew."""
    ckpt = f"ckpt_path={alone}/checkpoints/best.ckpt"
    data = ["data=folder", f"data.root={odd_videos}", f"data.val={odd_videos}/test"]
    both = config(ckpt, *data, "eval.views=2x1", *DDP, name="eval")
    assert codes(start(both, both, main=evaluate)) == [0, 0]
    digit = (
        "in the fourth digit at most" if same_results(alone, tmp_path / "results") > 1e-5 else "in the sixth digit"
    )
    happened(
        "An evaluation by two processes instead of one",
        f"top-1, n and the order of videos are the same; logits differ {digit}, as batches have other sizes",
    )


@pytest.mark.fault("Several processes")
@pytest.mark.parametrize(
    ("strategies", "step"),
    [
        (([], DDP), 4),
        pytest.param((DDP, []), 4, marks=pytest.mark.slow),
        pytest.param(([], DDP), 3, marks=pytest.mark.slow),  # between two epochs
        pytest.param((DDP, FSDP), 4, marks=pytest.mark.slow),
        pytest.param((FSDP, []), 4, marks=pytest.mark.slow),
        pytest.param((FSDP, FSDP), 4, marks=pytest.mark.slow),
        pytest.param(([], FSDP), 5, marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_with_another_number_of_processes(
    strategies: tuple[list[str], list[str]],
    step: int,
    alone: Path,
    odd_videos: Path,
    config: Config,
    tmp_path: Path,
    hooked: Callable[..., None],
    happened: Happened,
) -> None:
    """Two processes with 2 accumulated as one with 4 or, of other sizes, 2."""
    before, after = (
        [config(*settings(odd_videos, 2, "resume=auto", *strategy, "trainer.accelerator=cpu"))]
        * (2 if strategy else 1)
        for strategy in strategies
    )
    hooked(dies_at(step))
    assert set(codes(start(*before))) == {-signal.SIGKILL}
    hooked(record)
    assert set(codes(start(*after))) == {0}
    assert len(recorded(tmp_path / "run")[0]) == (6 - step) * (2 if len(after) > 1 else 4)
    close(alone, tmp_path / "run")
    names = [" ".join(strategy) or "one process" for strategy in strategies]
    happened(
        f"SIGKILL to all processes ({names[0]}) behind step {step} of 6, three to an epoch; then {names[1]}",
        "`resume=auto` went on; weights and curves are those of one process that was left alone, to float error",
    )


@pytest.mark.fault("Several processes")
def test_processes_that_do_not_agree_end_before_training(
    odd_videos: Path, config: Config, capfd: pytest.CaptureFixture[str], tmp_path: Path, happened: Happened
) -> None:
    other = odd_videos.parent / "other"
    if not other.exists():
        shutil.copytree(odd_videos, other)
        next(other.glob("train/*/*.mp4")).unlink()
    one, two = (config(*settings(odd_videos, 2, *DDP)) for _ in range(2))
    two.optimizer.lr, two.data.root = 0.3, str(other)
    two.run_dir = str(tmp_path / "elsewhere")  # as the time of the start may have it
    Path(two.run_dir).mkdir()
    assert codes(start(one, two)) == [1, 1]
    said = capfd.readouterr()
    assert (said.out + said.err).count("error:") == 1
    assert "  optimizer.lr: 0.1 in process 0, 0.3 in process 1\n" in said.err
    assert "  the train clips: 24 (checksum" in said.err
    assert "run_dir" not in said.err
    assert "epoch 1" not in said.out
    happened("Two processes with other configurations and lists of clips", f"both end at once: {said.err}")


@pytest.mark.fault("Several processes")
@pytest.mark.parametrize(
    ("how", "victim"), [("killed", 0), ("failed", 1), pytest.param("killed", 1, marks=pytest.mark.slow)]
)
def test_a_process_that_dies_ends_the_others(
    how: str,
    victim: int,
    odd_videos: Path,
    config: Config,
    capfd: pytest.CaptureFixture[str],
    hooked: Callable[..., None],
    happened: Happened,
) -> None:
    def die(task: VideoClassifier, batch: Any) -> None:
        if task.global_rank == victim and task.trainer.global_step == 1:
            if how == "failed":
                raise UserError("something of its own")
            os.kill(os.getpid(), signal.SIGKILL)

    hooked(die)
    both = config(*settings(odd_videos, 2, *DDP))
    expected = [1, 1]
    expected[victim] = 1 if how == "failed" else -signal.SIGKILL
    assert codes(start(both, both), 20) == expected
    said = capfd.readouterr().err
    assert "Traceback" not in said
    assert said.count("error: ") == (2 if how == "failed" else 1)
    assert said.count(f"error: process {1 - victim} of 2 has lost another one of the job") == 1
    what = "SIGKILL to" if how == "killed" else "An error of its own in"
    happened(f"{what} process {victim} of 2 within a step", f"the other ends with code 1: {said}")


def break_two(good: Path, root: Path, global_batch_size: int, micro_batch_size: int) -> list[Path]:
    """Copies the videos, and breaks one of the second micro-batch of each of two processes."""
    shutil.copytree(good, root)
    paths = sorted(root.glob("train/*/*.mp4"))
    samplers = [GlobalBatchSampler(24, global_batch_size, micro_batch_size, rank, 2, seed=0) for rank in range(2)]
    bad = [paths[list(sampler)[1][0][2]] for sampler in samplers]
    for path in bad:
        path.write_text("this is text")
    return bad


def test_a_checkpoint_lists_the_bad_videos_of_all_processes(
    odd_videos: Path, config: Config, tmp_path: Path, hooked: Callable[..., None]
) -> None:
    bad = break_two(odd_videos, tmp_path / "videos", global_batch_size=8, micro_batch_size=2)
    both = config(*settings(tmp_path / "videos", 2, *DDP, "data.max_bad_fraction=1"))
    hooked(dies_at(1))  # after the checkpoint of the first step
    assert set(codes(start(both, both))) == {-signal.SIGKILL}
    checkpoint = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 1
    listed = checkpoint["VideoDataModule"]["bad_videos"]
    assert sorted(path for path, _ in listed.values()) == sorted(map(str, bad))


@pytest.mark.fault("Several processes")
@pytest.mark.parametrize(
    ("checkpoints", "global_batch", "micro_batch", "trained"),
    [
        ("callbacks.last.minutes=0", 8, 2, 2),  # to the first checkpoint
        ("callbacks.last=null", 8, 2, 6),  # to the end of the first epoch, of three steps
        ("callbacks.last=null", 2, 1, 10),  # to the tenth step of twelve
    ],
)
def test_the_budget_of_bad_videos_is_that_of_all_processes(
    checkpoints: str,
    global_batch: int,
    micro_batch: int,
    trained: int,
    odd_videos: Path,
    config: Config,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    hooked: Callable[..., None],
    happened: Happened,
) -> None:
    """Training ends soon, whichever callbacks a configuration has.

    Each of two processes meets a bad video in its second micro-batch. Training ends after `trained` of 12 or 24.
    """
    write = BadVideoLog.write

    def written_by(bad_videos: BadVideoLog, split: str, reasons: dict[str, str]) -> None:
        print("list written by", distributed.rank(), flush=True)
        write(bad_videos, split, reasons)

    monkeypatch.setattr(BadVideoLog, "write", written_by)
    hooked(record)
    root = tmp_path / "videos"
    bad = break_two(odd_videos, root, global_batch, micro_batch)
    choices = [*DDP, checkpoints, f"global_batch_size={global_batch}", "data.max_bad_fraction=0.05"]  # one of 24
    both = config(*(word for word in settings(root, micro_batch) if "last.minutes" not in word), *choices)
    assert codes(start(both, both)) == [1, 1]
    assert [len(seen) for seen in recorded(tmp_path / "run")] == [trained, trained]
    out, said = capfd.readouterr()
    assert said.count("error: 2 of 24 training videos cannot be read") == said.count("error:") == 1
    assert out.count("list written by 0") == out.count("list written by") == 1
    with (tmp_path / "run/bad_videos.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["path"] for row in rows) == sorted(map(str, bad))
    happened("Each of two processes meets a bad video, and one is allowed", f"both end, and one says: {said}")


@pytest.mark.fault("Several processes")
def test_a_signal_to_one_process_stops_all(
    odd_videos: Path,
    config: Config,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    hooked: Callable[..., None],
    happened: Happened,
) -> None:
    def tell(task: VideoClassifier, batch: Any) -> None:
        if task.global_rank == 1 and task.trainer.global_step == 1:
            os.kill(os.getpid(), signal.SIGUSR1)

    hooked(tell)
    both = config(*settings(odd_videos, 2, *DDP))
    assert codes(start(both, both)) == [75, 75]
    assert capfd.readouterr().err.count("resumes after step 2\n") == 1
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 2
    happened(
        "SIGUSR1 to one process of two", "both end after the same step with code 75; one checkpoint, one message"
    )


@pytest.mark.fault("Numbers")
@pytest.mark.parametrize(
    "strategy", [pytest.param(DDP, id="ddp"), pytest.param(FSDP, id="fsdp", marks=pytest.mark.slow)]
)
def test_a_loss_that_is_not_finite_in_one_process_ends_all(
    strategy: list[str],
    odd_videos: Path,
    config: Config,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    happened: Happened,
) -> None:
    loss = VideoClassifier.loss

    def broken(task: VideoClassifier, logits_BK: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        bad = task.training and task.global_rank == 1 and task.trainer.global_step == 1
        return loss(task, logits_BK, target) * (float("nan") if bad else 1.0)

    monkeypatch.setattr(VideoClassifier, "loss", broken)
    both = config(*settings(odd_videos, 2, *strategy, "trainer.accelerator=cpu"))
    assert codes(start(both, both)) == [1, 1]
    said = capfd.readouterr().err
    assert said.count("error:") == said.count("error: the loss of step 2 is not finite\n") == 1
    (file,) = (tmp_path / "run/nonfinite").iterdir()
    assert file.name == "step_2_rank_1.pt"
    assert said.count(f"`vivit replay {file}` shows where it started") == 1
    last = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 1
    saved = torch.load(file, weights_only=True)["state_dict"]
    for name, value in last["state_dict"].items():
        assert torch.equal(saved[name], value), name
    happened(f"A loss of nan in one of two processes ({' '.join(strategy)})", f"both end, and one says: {said}")


def test_weights_that_are_shared_out_are_not_averaged(config: Config) -> None:
    with pytest.raises(UserError, match=r"ema_decay=0\.9: weights that trainer=fsdp shards"):
        train(config("trainer=fsdp", "ema_decay=0.9"))


@pytest.mark.parametrize("backend", ["nccl", "gloo"])
def test_a_process_whose_gpu_waits_for_a_lost_one_does_not_wait_too(
    backend: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: backend)

    def run() -> None:
        with suppress(RuntimeError), distributed.exit_on_lost_rank():
            raise RuntimeError("[gloo/transport/tcp/pair.cc:545] Connection reset by peer")
        os._exit(3)

    process = fork.Process(target=run)
    process.start()
    assert codes([process]) == [1 if backend == "nccl" else 3]
    assert capfd.readouterr().err.count("error: process 0 of 1 has lost another one") == (backend == "nccl")
