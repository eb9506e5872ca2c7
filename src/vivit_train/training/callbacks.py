"""Callbacks that report progress, plot learning curves, and show what the model sees during training."""

import logging
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from vivit_train.data.datamodule import VideoDataModule
from vivit_train.data.dataset import ClipBatch
from vivit_train.training.answers import chance
from vivit_train.training.loggers import log_image
from vivit_train.training.module import VideoClassifier
from vivit_train.training.profiling import (
    FORWARD_AND_BACKWARD,
    matmul_peak,
    memory_text,
    peak_memory_gb,
    step_dtype,
)
from vivit_train.training.task import VideoTask
from vivit_train.utils.plots import contact_sheet, learning_curves, optional_picture
from vivit_train.utils.text import plural, printable, shorten

log = logging.getLogger(__name__)

LINE_EVERY_S = 30.0
SHARES = 4  # The caption of a mixed clip lists at most this many classes.
SHARED_NAME = 24  # Each class name in that caption has at most this many characters.
MUCH_WAITING = 0.1  # A larger data-wait share in an epoch of at least a minute triggers advice.
MEASURED_STEPS = 3  # The estimate comes after this many steps; the first is not timed because it includes setup.


class Report(Callback):
    """A callback that logs speed, memory, progress, and learning curves.

    It logs an estimate for the whole training after three steps, and one line per epoch. Without a terminal for a
    progress bar, it also logs a progress line every 30 seconds.

    Data-wait is the share of the time that the trainer spends waiting for the loader. MFU is the share of the
    device's matmul throughput (`matmul_peak`, in the run's precision) that the model's forward and backward passes
    use (three times `forward_flops`), including the time spent waiting. Peak memory is that of this process on its
    device (`peak_memory_gb`).

    Args:
        curves: The file of the learning curves, which is redrawn after each epoch; None draws none.
    """

    def __init__(self, curves: str | Path | None) -> None:
        self.curves = None if curves is None else Path(curves)
        self.history: list[dict[str, float]] = []
        self.chance = math.nan

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = state_dict["history"]

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        assert isinstance(pl_module, VideoTask)
        self.device = trainer.strategy.root_device
        # This is measured now, before the loader workers start to compete for the CPU.
        peak = matmul_peak(self.device, step_dtype(str(trainer.precision)))
        self.mfu_of_1_clip_per_s = FORWARD_AND_BACKWARD * pl_module.forward_flops / peak
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.started_s = self.last_line_s = time.monotonic()
        assert isinstance(pl_module, VideoTask)
        self.first_step = trainer.global_step
        data: VideoDataModule = trainer.datamodule  # type: ignore[attr-defined]
        epochs = trainer.max_epochs or 1
        self.total_steps = planned_steps(data.steps_per_epoch * epochs + data.schedule_offset, trainer)
        self.steps_done, self.timed_clips, self.timed_s = 0, 0, 0.0
        self.main_score = pl_module.main_score
        self.chance = chance(data.splits.val.targets)
        # Lightning skips this hook if a run resumes in the middle of an epoch.
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.epoch_s = self.step_end_s = time.monotonic()
        self.clips, self.waited_s, self.validated = 0, 0.0, False

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.validated = True

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: ClipBatch, batch_idx: int
    ) -> None:
        self.waited_s += time.monotonic() - self.step_end_s

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: ClipBatch, batch_idx: int
    ) -> None:
        now_s = time.monotonic()
        took_s, self.step_end_s = now_s - self.step_end_s, now_s
        clips = len(batch["label"]) * trainer.world_size
        self.expect(trainer, clips, took_s)
        self.clips += clips
        elapsed_s = now_s - self.epoch_s
        self.clips_per_s, self.data_wait = self.clips / elapsed_s, self.waited_s / elapsed_s
        pl_module.log("train/clips_per_s", self.clips_per_s, prog_bar=True)
        pl_module.log("train/data_wait_%", 100 * self.data_wait, prog_bar=True)
        pl_module.log("train/mfu_%", 100 * self.mfu(self.clips_per_s, trainer))
        pl_module.log("train/peak_memory_gb", peak_memory_gb(self.device))
        if now_s - self.last_line_s > LINE_EVERY_S and not sys.stdout.isatty():
            steps = int(trainer.num_training_batches)
            self.line(
                trainer, f"step {batch_idx + 1}/{steps}", loss=trainer.callback_metrics.get("train/loss_step")
            )

    def mfu(self, clips_per_s: float, trainer: L.Trainer) -> float:
        """Returns the MFU of one device at a given global throughput."""
        return self.mfu_of_1_clip_per_s * clips_per_s / trainer.world_size

    def expect(self, trainer: L.Trainer, clips: int, took_s: float) -> None:
        """Logs an estimate for the whole training once the first steps are done.

        Args:
            trainer: The trainer.
            clips: The number of clips in the last micro-batch, summed over all ranks.
            took_s: The seconds that the last micro-batch took, including the wait for its data.
        """
        before, self.steps_done = self.steps_done, trainer.global_step - self.first_step
        if not 1 <= before < MEASURED_STEPS:
            return
        self.timed_clips, self.timed_s = self.timed_clips + clips, self.timed_s + took_s
        if self.steps_done == MEASURED_STEPS and trainer.is_global_zero:
            step_s = self.timed_s / (MEASURED_STEPS - 1)
            steps = self.total_steps - self.first_step
            mfu = self.mfu(self.timed_clips / self.timed_s, trainer)
            log.info(
                f"measured: {step_s:.3g} s per step, {clock(step_s * steps)} for {plural(steps, 'step')} without "
                f"validation; MFU {mfu:.0%}; peak memory {memory_text(self.device)}"
            )

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        # The last epoch may end with trainer.max_steps before Lightning has averaged its loss.
        loss = metrics.get("train/loss_epoch", metrics.get("train/loss_step", math.nan))
        row = {"epoch": trainer.current_epoch + 1, "train/loss": loss}
        if self.validated:  # In other epochs, callback_metrics still has the values of an earlier one.
            row |= {name: value for name, value in metrics.items() if name.startswith("val/")}
        if "train/top1" in metrics:
            row["train/top1"] = metrics["train/top1"]
        self.history.append(row)
        val = {f"val_{name}": row.get(f"val/{name}") for name in (self.main_score, "loss")}
        self.line(trainer, loss=row["train/loss"], top1=row.get("train/top1"), **val)
        if self.data_wait > MUCH_WAITING and self.step_end_s - self.epoch_s > 60 and trainer.is_global_zero:
            log.info(
                f"the model waited for data {self.data_wait:.0%} of the time: use smaller videos with more key "
                "frames (`vivit prepare`) or more cores (data.num_workers); `vivit bench loader` says how many"
            )
        if trainer.is_global_zero and self.curves:
            with optional_picture(self.curves):
                learning_curves(self.curves, self.history, self.chance)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero and self.curves and self.curves.is_file():
            for logger in trainer.loggers:
                log_image(logger, "curves", self.curves, trainer.global_step)

    def line(self, trainer: L.Trainer, *words: str, **numbers: Any) -> None:
        """Logs a progress line with speed, data-wait, and ETA."""
        self.last_line_s = time.monotonic()
        done = trainer.global_step - self.first_step
        left = self.total_steps - trainer.global_step
        eta_s = (self.last_line_s - self.started_s) / max(done, 1) * left
        shown = [f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}", *words]
        shown += [
            f"{name.replace('_', ' ')} {float(value):.3f}" for name, value in numbers.items() if value is not None
        ]
        shown += [f"{self.clips_per_s:.1f} clips/s", f"data wait {self.data_wait:.0%}", f"ETA {clock(eta_s)}"]
        if trainer.is_global_zero:
            log.info("  ".join(shown))


def planned_steps(steps: int, trainer: L.Trainer) -> int:
    """Returns the number of optimizer steps of a training run, which trainer.max_steps may limit."""
    return min(steps, trainer.max_steps) if trainer.max_steps > 0 else steps


class Overfit(Callback):
    """A callback that trains on the first batch only and reports whether the model can learn those clips.

    Args:
        loss: Training stops once the loss is below this value.
    """

    def __init__(self, loss: float) -> None:
        self.loss = loss
        self.batch: ClipBatch = {}

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: ClipBatch, batch_idx: int
    ) -> None:
        self.batch = self.batch or batch.copy()
        batch.update(self.batch)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: ClipBatch, batch_idx: int
    ) -> None:
        self.last_loss = float(outputs["loss"]) * trainer.accumulate_grad_batches
        trainer.should_stop = self.last_loss < self.loss

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, VideoClassifier)
        targets = zip(*pl_module.by_head(self.batch["label"].cpu()), strict=True)
        names = {tuple(map(caption, row, pl_module.classes.values())) for row in targets}
        found = "learned" if self.last_loss < self.loss else "NOT learned"
        alike = "; they all have the same class, so another seed is a better test" if len(names) == 1 else ""
        log.info(
            f"overfit: {plural(len(self.batch['label']), 'clip')} {found}: loss {self.last_loss:.4f} after "
            f"{plural(trainer.global_step, 'step')} (target: below {self.loss:g}){alike}"
        )


def clock(seconds: float) -> str:
    """Formats a duration as h:mm:ss or m:ss."""
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{s:02}" if hours else f"{minutes}:{s:02}"


class ContactSheet(Callback):
    """A callback that draws the first training batch as the model sees it, after augmentation and mixing.

    With cache=true, there are no pixels to draw.

    Args:
        path: The output file.
        clips: The maximum number of clips to draw.
    """

    def __init__(self, path: str | Path, clips: int = 8) -> None:
        self.path, self.clips = Path(path), clips

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: ClipBatch, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, VideoClassifier)
        if trainer.global_step > 0 or batch_idx > 0 or not trainer.is_global_zero or not pl_module.reads_videos:
            return
        with torch.random.fork_rng():  # This repeats the draws of the coming step without consuming them.
            torch.manual_seed(pl_module.step_seed(batch_idx))
            video_BCTHW, target = pl_module.training_input(batch)
        pixels = (video_BCTHW.transpose(1, 2)[: self.clips] * pl_module.std + pl_module.mean) / 255
        targets = zip(*(part[: self.clips].cpu() for part in pl_module.by_head(target)), strict=True)
        captions = [
            " | ".join(caption(t, names) for t, names in zip(row, pl_module.classes.values(), strict=True))
            for row in targets
        ]
        data: VideoDataModule = trainer.datamodule  # type: ignore[attr-defined]
        ids = data.splits.train.ids[batch["index"].cpu().numpy()]
        captions = [
            f"{names}\n{printable(name)}, {box_text(box)}"
            for names, name, box in zip(captions, ids, batch["box"].tolist(), strict=False)
        ]
        title = "first training batch as the model sees it, after augmentation" + " and mixing" * pl_module.mixes
        frame_numbers, times_s = batch["frame_numbers"].cpu(), batch["times_s"].cpu()
        with optional_picture(self.path):
            contact_sheet(self.path, pixels.float().cpu(), captions, frame_numbers, times_s, title)
        for logger in trainer.loggers if self.path.is_file() else ():
            log_image(logger, "train/contact_sheet", self.path, trainer.global_step)


def box_text(box: Sequence[int]) -> str:
    """Returns the crop box of a clip as text; see `Sample.box`."""
    top, left, height, width, flipped = box
    return f"crop of {width}x{height} pixels at x {left}, y {top}{', flipped' if flipped else ''}"


def caption(target: torch.Tensor, classes: tuple[str, ...]) -> str:
    """Returns the class name or names of a target; for a mixed clip, the classes with the largest shares."""
    if target.ndim == 0:
        return printable(classes[int(target)])
    if target.dtype == torch.bool:
        return (
            ", ".join(printable(name) for name, has in zip(classes, target.tolist(), strict=True) if has) or "none"
        )
    shares, ids = target.topk(min(SHARES, len(classes)))
    pairs = zip(shares.tolist(), ids.tolist(), strict=True)
    return (
        " + ".join(
            f"{share:.2f} {shorten(printable(classes[i]), SHARED_NAME)}" for share, i in pairs if share >= 0.005
        )
        or "none"
    )
