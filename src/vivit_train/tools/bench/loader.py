"""`vivit bench loader`: measure the throughput of the data loader and its stages, and advise how to improve it."""

import json
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import DataLoader

from vivit_train.build import build_data
from vivit_train.data.annotations.table import ClipTable
from vivit_train.data.datamodule import VideoDataModule
from vivit_train.data.dataset import ClipBatch, collate
from vivit_train.data.sampler import Key
from vivit_train.data.transforms import seeded
from vivit_train.data.video.scan import probe
from vivit_train.data.video.storage import is_plain, state
from vivit_train.tools.bench.stages import STAGES, Stages, is_readable, repeat_rows, uncached_paths
from vivit_train.tools.bench.train import bench_train
from vivit_train.tools.encode import Settings, encode
from vivit_train.tools.manifest import is_prepared
from vivit_train.utils.errors import UserError, VideoError
from vivit_train.utils.process_pool import usable_cores
from vivit_train.utils.text import plural

CORES = (1, 2, 4, 8, 16, 32, 64)  # The throughput is predicted for these numbers of cores.
TRIED = 3  # This many videos are re-encoded to measure the gain of `vivit prepare`.
LONGEST = 3000  # Videos with more frames are not re-encoded for that, as it would take too long.
WORTH_SAYING = 1.15  # A smaller gain is within the noise.
STEPS = 2  # This many training steps are timed to measure what the model consumes.
FAST = 2.0  # A model that trains on more clips/s than this is measured again with whole micro-batches.
LITTLE = 0.1  # A loader that takes a smaller share of the time is not worth improving.


@dataclass(frozen=True)
class Result:
    """The result of the benchmark. Times are in milliseconds per clip on one core.

    Attributes:
        clips: Number of clips in the sample that can be read.
        unreadable: Number of clips in the sample that cannot be read.
        frames_decoded: Mean number of decoded frames per clip, from the key frame before its first frame to its
            last frame.
        stage_ms: Time of each stage. The time to read frames is divided in the proportion that libavcodec alone
            needs for the frames before the first frame of the clip ("seek"), for the remaining frames ("decode")
            and for their conversion.
        total_ms: Sum of the times of all stages.
        raw_ms: Time that libavcodec alone needs to decode the same frames, without converting any.
        beside_ms: Time of each stage after the loader, which runs in parallel to it. It can be empty.
        clips_per_s: Throughput by number of workers. 0 workers means the main process.
        predicted: Predicted clips/s by number of cores, from the rate per core when all cores are in use.
        prepared_gain: Speedup with files from `vivit prepare`, or None if it was not measured.
        advice: Advice in one sentence.
    """

    clips: int
    unreadable: int
    frames_decoded: float
    stage_ms: dict[str, float]
    total_ms: float
    raw_ms: float
    beside_ms: dict[str, float]
    clips_per_s: dict[int, float]
    predicted: dict[int, float]
    prepared_gain: float | None
    advice: str


@dataclass(frozen=True)
class Demand:
    """The throughput that the loader should have.

    Attributes:
        clips_per_s: Clips per second.
        source: What consumes them, as the subject of a sentence.
        shares_cores: Whether the model runs on the cores that load the clips.
    """

    clips_per_s: float
    source: str
    shares_cores: bool = False


def bench_loader(
    cfg: DictConfig,
    *,
    clips: int = 64,
    rounds: int = 3,
    workers: Sequence[int] = (),
    target_clips_per_s: float | None = None,
    gop: int = 32,
) -> Result:
    """Measure the data loader on a random sample of the training clips of a configuration.

    Files are read from the page cache of the system, not from disk.

    Args:
        cfg: Configuration, as for training.
        clips: Number of videos in the random sample.
        rounds: Number of measurements, of which the medians count.
        workers: Numbers of workers to try. Empty means 1, 2, 4, ... up to the number of cores.
        target_clips_per_s: Clips/s that the advice aims at. None means what the model consumes on this device.
        gop: GOP size in frames of the files that `vivit prepare` would write.

    Raises:
        UserError: The data cannot be found, or no clip of the sample can be read.
    """
    device = _device(cfg)
    augment_on = cfg.data.augment_on
    if augment_on == "auto":  # The trainer decides in the same way.
        augment_on = "device" if device and device.type == "cuda" else "worker"
    data = build_data(cfg, augment_on=augment_on)
    manifest, num_unreadable = _readable_sample(data, clips)
    demand = _given_demand(target_clips_per_s) if target_clips_per_s else measure_demand(cfg, device)
    torch.set_num_threads(1)
    cores = usable_cores()
    workers = workers or sorted({min(2**i, cores) for i in range(cores.bit_length() + 1)})
    with tempfile.TemporaryDirectory() as folder:
        gain = _prepared_gain(data, manifest, Settings(data.short_side // 2 * 2, gop), rounds, Path(folder))
    stages, loaders = Stages(data, manifest, rounds), _Workers(data, manifest, workers, rounds)
    for turn in range(rounds):  # Measurements alternate, so that other load on the machine affects both.
        stages.measure(turn)
        loaders.measure(turn)
    stage_ms = dict(zip(STAGES, (stages.per_clip(stages.seconds) * 1e3).tolist(), strict=True))
    if data.augments_on_device:
        del stage_ms["augment"]
    total_ms, rates = sum(stage_ms.values()), loaders.clips_per_s()
    busiest = max((number for number in rates if 0 < number <= cores), default=0)
    per_core = rates[busiest] / busiest if busiest else 1000 / total_ms
    return Result(
        clips=len(manifest),
        unreadable=num_unreadable,
        frames_decoded=float(stages.decoded.mean() / stages.clips.clips_per_video),
        stage_ms=stage_ms,
        total_ms=total_ms,
        raw_ms=float(stages.per_clip(stages.raw_s) * 1e3),
        beside_ms=device_stages(data, manifest, device, rounds) if device or data.augments_on_device else {},
        clips_per_s=rates,
        predicted={n: n * per_core for n in CORES},
        prepared_gain=None if isinstance(gain, str) else gain,
        advice=advise(demand, per_core, cores, gain, stage_ms),
    )


def _device(cfg: DictConfig) -> torch.device | None:
    """Return the accelerator that training would use, or None for the CPU."""
    if cfg.trainer.accelerator == "cpu":
        return None
    return torch.accelerator.current_accelerator(check_available=True)


def _readable_sample(data: VideoDataModule, clips: int) -> tuple[ClipTable, int]:
    """Return the readable clips of a random sample of the training clips, and the number of unreadable ones.

    Raises:
        UserError: None of them can be read.
    """
    sample = np.random.default_rng(data.seed).permutation(len(data.splits.train))[:clips]
    manifest = data.splits.train.select(sample)
    good: list[int] = []
    for row in range(len(manifest)):
        if is_readable(data, manifest, row, number=len(good)):
            good.append(row)
    if not good:
        raise UserError(f"none of {plural(len(manifest), 'clip')} can be read: `vivit doctor` reports the reasons")
    return manifest.select(np.array(good)), len(sample) - len(good)


def _given_demand(clips_per_s: float) -> Demand:
    return Demand(clips_per_s, f"a device that consumes {clips_per_s:g} clips/s")


def measure_demand(cfg: DictConfig, device: torch.device | None) -> Demand:
    """Measure how many clips/s the model consumes in training, on this device or, if it is None, on the CPU."""
    if device is None:  # One clip per step takes the least time. Only a small model is faster with more.
        one_clip = OmegaConf.merge(
            cfg, {"micro_batch_size": 1, "global_batch_size": 1, "mixup": 0.0, "cutmix": 0.0}
        )
        rate = bench_train(cast(DictConfig, one_clip), steps=STEPS).clips_per_s
    if device or rate > FAST:
        rate = bench_train(cfg, steps=STEPS).clips_per_s
    where = f"this {device.type} device" if device else "this CPU"
    return Demand(rate, f"training on {where}, at up to {rate:.3g} clips/s,", shares_cores=device is None)


def advise(demand: Demand, per_core: float, cores: int, gain: float | str, stage_ms: dict[str, float]) -> str:
    """Say whether the loader limits training and what would make it faster.

    Args:
        demand: Throughput that the loader should have.
        per_core: Clips/s of the loader per core.
        cores: Number of cores of this machine.
        gain: Speedup with files from `vivit prepare`, or the reason why it was not measured.
        stage_ms: Time of each stage of the loader in milliseconds per clip.
    """
    if demand.shares_cores:
        share = demand.clips_per_s / (demand.clips_per_s + cores * per_core)
        limits = f"{demand.source} spends {share:.0%} of its time on loading"
        if share < LITTLE:
            return f"{limits}: the model limits training, not the loader"
    else:
        limits = f"{demand.source} needs {plural(math.ceil(demand.clips_per_s / per_core), 'core')}"
    stage, ms = max(stage_ms.items(), key=lambda item: item[1])
    slowest = f"the slowest stage is {stage} ({ms / sum(stage_ms.values()):.0%})"
    if stage == "augment":
        slowest += ", which depends on data.crop, data.color_jitter and data.randaugment"
    if isinstance(gain, str):
        return f"{limits}; {gain}; {slowest}"
    if gain < WORTH_SAYING:
        return f"{limits}; `vivit prepare` would make little difference ({gain:.1f}x): {slowest}"
    return f"{limits}; `vivit prepare` would make the loader {gain:.1f}x as fast; {slowest}"


class _Workers:
    """Measures the time that loaders with different numbers of workers take for all clips."""

    def __init__(self, data: VideoDataModule, manifest: ClipTable, workers: Sequence[int], rounds: int) -> None:
        self.data, self.n = data, len(manifest)
        # Batches are small enough that each worker gets several of them.
        self.size = max(1, min(data.micro_batch_size, self.n // (4 * max(*workers, 1))))
        self.clips = data.train_dataset(repeat_rows(data, manifest, rounds + 1))
        self.seconds: dict[int, list[float]] = {number: [] for number in workers}
        self.loaders: dict[int, tuple[DataLoader[ClipBatch], list[list[Key]]]] = {}
        for number in workers:
            batches: list[list[Key]] = []  # The list changes between rounds, while the workers stay alive.
            loader = data.loader(self.clips, num_workers=number, batch_sampler=batches)
            self.loaders[number] = loader, batches
        self.measure(rounds)  # The first measurement starts the workers and does not count.
        self.seconds = {number: [] for number in workers}

    def measure(self, turn: int) -> None:
        keys = [(0, 0, turn * self.n + row) for row in range(self.n)]
        for number, (loader, batches) in self.loaders.items():
            batches[:] = [keys[i : i + self.size] for i in range(0, self.n, self.size)]
            start = time.perf_counter()
            with self.data.translate_worker_errors():
                for _ in loader:
                    pass
            self.seconds[number].append(time.perf_counter() - start)

    def clips_per_s(self) -> dict[int, float]:
        clips = self.n * self.clips.clips_per_video
        return {number: clips / statistics.median(seconds) for number, seconds in self.seconds.items()}


def device_stages(
    data: VideoDataModule, manifest: ClipTable, device: torch.device | None, rounds: int
) -> dict[str, float]:
    """Measure the stages after the loader in milliseconds per clip: the transfer and, on the device, augmentation.

    If there is no device, the main process runs the augmentation.
    """
    n = min(len(manifest), data.micro_batch_size)
    clips = data.train_dataset(manifest)
    batch = collate([clips[0, 0, row] for row in range(n)])
    if device and device.type == "cuda":
        batch["video"] = batch["video"].pin_memory()
    seconds = np.zeros((rounds + 1, 2))
    for turn in range(rounds + 1):
        start = time.perf_counter()
        moved = batch.copy()
        moved["video"] = batch["video"].to(device, non_blocking=True)
        _finish_work(device)
        there = time.perf_counter()
        data.on_after_batch_transfer(moved, 0)
        _finish_work(device)
        seconds[turn] = there - start, time.perf_counter() - there
    transfer_ms, augment_ms = (np.median(seconds[1:], axis=0) * 1e3 / n).tolist()
    where = f"on {device.type}" if device else "in the main process"
    stages = {f"transfer to {device.type}": transfer_ms} if device else {}
    return stages | ({f"augment {where}": augment_ms} if data.augments_on_device else {})


def _finish_work(device: torch.device | None) -> None:
    if device and device.type != "cpu":
        torch.accelerator.synchronize(device)


def _prepared_gain(
    data: VideoDataModule, manifest: ClipTable, settings: Settings, rounds: int, folder: Path
) -> float | str:
    """Measure on a few videos how much faster clips load after `vivit prepare`.

    Returns:
        The speedup, or the reason why it was not measured.
    """
    before: list[str] = []
    after: list[str] = []
    rows = []
    num_prepared = 0
    for row, path in enumerate(manifest.paths.tolist()):
        if len(before) + num_prepared == TRIED:
            break
        target = str(folder / f"{row}.mp4")
        with suppress(VideoError):  # A video may be damaged after the clip; it cannot be re-encoded.
            is_file = is_plain(path) and not state(path).is_folder
            if is_file and is_prepared(path):
                num_prepared += 1
            elif is_file and path not in before and probe(path).num_frames <= LONGEST:
                encode(path, target, settings)
                before.append(path)
                after.append(target)
                rows.append(row)
    if num_prepared and not before:
        return "the videos are from `vivit prepare`"
    if not before:
        return (
            f"the gain of `vivit prepare` was not measured, as no video is a plain file of up to {LONGEST} frames"
        )
    chosen = manifest.select(np.array(rows))
    made = replace(chosen, paths=np.array(after, np.dtypes.StringDType()))
    both = [data.train_dataset(uncached_paths(one, rounds)) for one in (chosen, made)]
    seconds = np.zeros((2, rounds, len(rows)))
    for turn in range(rounds):
        for i in range(len(rows)):
            for which, clips in enumerate(both):
                with seeded(data.seed, i):
                    start = time.perf_counter()
                    clips.load(turn * len(rows) + i)
                    seconds[which, turn, i] = time.perf_counter() - start
    was_s, is_s = np.median(seconds, axis=1).sum(axis=1)
    return float(was_s / is_s)


def table(result: Result) -> str:
    """Format the result in Markdown."""
    skipped = f" ({plural(result.unreadable, 'unreadable clip')} skipped)" if result.unreadable else ""
    lines = [f"{plural(result.clips, 'clip')}{skipped}; {result.frames_decoded:.0f} frames decoded per clip", ""]
    lines += ["| stage | ms per clip | share |", "|---|---|---|"]
    for stage, ms in result.stage_ms.items():
        lines.append(f"| {stage} | {ms:.2f} | {ms / result.total_ms:.0%} |")
    lines.append(f"| **total on one core** | {result.total_ms:.2f} | {1000 / result.total_ms:.1f} clips/s |")
    lines += [f"| {stage}, in parallel | {ms:.2f} | |" for stage, ms in result.beside_ms.items()]
    if not any(stage.startswith("transfer") for stage in result.beside_ms):
        lines.append("| transfer: no GPU found | | |")
    share = result.raw_ms / result.total_ms
    lines.append(f"| raw limit: libavcodec alone | {result.raw_ms:.2f} | {share:.0%} |")
    lines += ["", "| workers | clips/s | speedup over main process |", "|---|---|---|"]
    for number, rate in result.clips_per_s.items():
        lines.append(f"| {number} | {rate:.1f} | {rate * result.total_ms / 1000:.2f} |")
    lines += ["", "| cores | predicted clips/s |", "|---|---|"]
    lines += [f"| {cores} | {rate:.0f} |" for cores, rate in result.predicted.items()]
    return "\n".join([*lines, "", f"Advice: {result.advice}."])


def save(result: Result, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(asdict(result), indent=2) + "\n", encoding="utf-8")
