"""`vivit bench train`: measure whole training steps, as in train.py, on clips that are already in memory."""

import json
import shlex
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import DataLoader, IterableDataset

from vivit_train.build import build_module, build_trainer
from vivit_train.config import derive, validate
from vivit_train.data.dataset import ClipBatch
from vivit_train.models.tuning import set_trained
from vivit_train.run import quiet_lightning
from vivit_train.tools.bench.model import device_name, finish
from vivit_train.training.checkpoint import Metadata, build_net
from vivit_train.training.failures import translate_compile_errors
from vivit_train.training.profiling import FORWARD_AND_BACKWARD, matmul_peak, peak_memory_gb, step_dtype
from vivit_train.utils.text import plural

CLASSES = 400
UNTIMED = 2  # The first steps are for warm-up and are not timed.
LOOP, FORWARD, BACKWARD, OPTIMIZER = "transfer, loop", "normalize, mix, forward", "backward", "clip, optimizer"


@dataclass(frozen=True)
class Result:
    """The result of the benchmark on one device.

    Attributes:
        model: Name, size and input of the model.
        micro_batch_size: Number of clips per step.
        precision: Precision of the trainer.
        device: Name of the device.
        clips_per_s: Throughput of consecutive steps, without synchronization between stages.
        stage_ms: Time of each stage in milliseconds per step, with synchronization after each stage.
        mfu: Model FLOPs utilization, as a fraction of `matmul_peak` in the run's precision.
        peak_memory_gb: Peak memory in GB; see `profiling.peak_memory_gb`.
    """

    model: str
    micro_batch_size: int
    precision: str
    device: str
    clips_per_s: float
    stage_ms: dict[str, float]
    mfu: float
    peak_memory_gb: float


def bench_train(cfg: DictConfig, *, steps: int = 10) -> Result:
    """Time `steps` training steps of a configuration as a whole, and as many more by stage.

    Raises:
        UserError: The configuration is invalid.
    """
    quiet_lightning()
    validate(cfg)
    L.seed_everything(cfg.seed, verbose=False)
    total = UNTIMED + 2 * steps
    one_process = {"devices": 1, "num_nodes": 1, "strategy": "auto", "max_epochs": 1, "max_steps": total}
    quiet = {"limit_val_batches": 0, "enable_progress_bar": False}
    micro_batch_size = min(cfg.micro_batch_size, cfg.global_batch_size)
    settings = {"callbacks": None, "logger": None, "global_batch_size": micro_batch_size}
    cfg = derive(cast(DictConfig, OmegaConf.merge(cfg, settings, {"trainer": one_process | quiet})))
    classes = {"": [str(number) for number in range(CLASSES)]}
    net = build_net(cfg.model, classes)
    set_trained(net, cfg.train)
    task = build_module(cfg, net, Metadata({}, classes, [0.5] * 3, [0.5] * 3), total)
    trainer, clock = build_trainer(cfg), Clock(steps)
    trainer.callbacks.append(clock)  # type: ignore[attr-defined]
    batches = DataLoader(SameBatch(micro_batch_size, cfg.data.frames, cfg.data.crop), batch_size=None)
    with translate_compile_errors():
        trainer.fit(task, batches)
    device = trainer.strategy.root_device
    clips_per_s = steps * micro_batch_size / clock.all_s
    peak = matmul_peak(device, step_dtype(str(trainer.precision)))
    return Result(
        f"{task.net.model} {cfg.model.size}, {cfg.data.frames} frames of {cfg.data.crop}",
        micro_batch_size,
        str(trainer.precision),
        device_name(device.type),
        clips_per_s,
        {stage: 1000 * statistics.median(seconds) for stage, seconds in clock.stages_s.items()},
        FORWARD_AND_BACKWARD * task.forward_flops * clips_per_s / peak,
        peak_memory_gb(device),
    )


class SameBatch(IterableDataset[ClipBatch]):
    """Yields the same batch of noise forever."""

    def __init__(self, clips: int, frames: int, crop: int) -> None:
        video = torch.randint(256, (clips, frames, 3, crop, crop), dtype=torch.uint8)
        label = torch.arange(clips)[:, None] % CLASSES
        if torch.cuda.is_available():
            video, label = video.pin_memory(), label.pin_memory()
        self.batch: ClipBatch = {"video": video, "label": label}

    def __iter__(self) -> Iterator[ClipBatch]:
        while True:
            yield self.batch.copy()


class Clock(Callback):
    """Times a number of steps as a whole, and the same number of steps by stage."""

    def __init__(self, steps: int) -> None:
        self.steps, self.all_s, self.last_s = steps, 0.0, 0.0
        self.stages_s: dict[str, list[float]] = {stage: [] for stage in (LOOP, FORWARD, BACKWARD, OPTIMIZER)}

    def lap(self, trainer: L.Trainer, stage: str) -> None:
        if trainer.global_step >= UNTIMED + self.steps:
            finish(trainer.strategy.root_device)
            now_s = time.perf_counter()
            self.stages_s[stage].append(now_s - self.last_s)
            self.last_s = now_s

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        self.lap(trainer, LOOP)

    def on_before_backward(self, trainer: L.Trainer, *args: Any) -> None:
        self.lap(trainer, FORWARD)

    def on_after_backward(self, trainer: L.Trainer, *args: Any) -> None:
        self.lap(trainer, BACKWARD)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step in (UNTIMED, UNTIMED + self.steps):
            finish(trainer.strategy.root_device)
            now_s = time.perf_counter()
            if trainer.global_step > UNTIMED:
                self.all_s = now_s - self.last_s
            self.last_s = now_s
        # The counter is already incremented, so a step that started before the timing by stage is excluded.
        elif trainer.global_step > UNTIMED + self.steps:
            self.lap(trainer, OPTIMIZER)


def table(result: Result, overrides: Sequence[str]) -> str:
    """Format the result in Markdown and describe the bottleneck."""
    total_ms = sum(result.stage_ms.values())
    clips = plural(result.micro_batch_size, "clip")
    lines = [f"{result.model}, {clips} per step, {result.precision}; {result.device}", ""]
    lines += ["| stage | ms/step | share |", "|---|---|---|"]
    lines += [f"| {stage} | {ms:.1f} | {ms / total_ms:.0%} |" for stage, ms in result.stage_ms.items()]
    stage = max(result.stage_ms, key=result.stage_ms.__getitem__)
    rate = f"{result.clips_per_s:.3g}"
    same = shlex.join(overrides)
    return "\n".join(
        [
            *lines,
            "",
            f"{rate} clips/s, MFU {result.mfu:.0%}, peak memory {result.peak_memory_gb:.1f} GB",
            "",
            f"Slowest stage: {stage}, {result.stage_ms[stage] / total_ms:.0%} of a step. If the data loader "
            f"delivers at least {rate} clips/s, the model limits training; otherwise, the loader does. To measure "
            "the loader, run:",
            f"vivit bench loader {same} --target {rate}".replace("  ", " "),
        ]
    )


def save(result: Result, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(asdict(result), indent=2) + "\n", encoding="utf-8")
