"""What a run shows while it trains: speed, a line per epoch, learning curves, and what the model sees."""

import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from vivit_train.pictures import contact_sheet, learning_curves
from vivit_train.task import Batch, VideoClassification

LINE_EVERY_S = 30.0
SHARES = 4  # of a mixed clip, that its caption has room for
MUCH_WAITING = 0.1  # of the time, in an epoch of a minute or more


class Report(Callback):
    """Clips per second and data-wait % in the log and the progress bar; a line per epoch; learning curves.

    Data-wait is the share of the time between steps in which the trainer had nothing to do but wait for the
    loader. Where there is no terminal for a progress bar, a line every half minute says how far it is.

    Args:
        curves: file of the learning curves, drawn anew after each epoch.
    """

    def __init__(self, curves: str | Path) -> None:
        self.curves = Path(curves)
        self.history: list[dict[str, float]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = state_dict["history"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.started_s = self.last_line_s = time.monotonic()
        assert isinstance(pl_module, VideoClassification)
        self.first_step, self.total_steps = trainer.global_step, pl_module.total_steps
        self.main_score = pl_module.main_score
        # Lightning leaves it out where a run goes on within an epoch
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.epoch_s = self.step_end_s = time.monotonic()
        self.clips, self.waited_s, self.validated = 0, 0.0, False

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.validated = True

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        self.waited_s += time.monotonic() - self.step_end_s

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.step_end_s = now_s = time.monotonic()
        self.clips += len(batch["label"]) * trainer.world_size
        elapsed_s = now_s - self.epoch_s
        self.clips_per_s, self.data_wait = self.clips / elapsed_s, self.waited_s / elapsed_s
        pl_module.log("train/clips_per_s", self.clips_per_s, prog_bar=True)
        pl_module.log("train/data_wait_%", 100 * self.data_wait, prog_bar=True)
        if now_s - self.last_line_s > LINE_EVERY_S and not sys.stdout.isatty():
            steps = int(trainer.num_training_batches)
            self.line(
                trainer, f"step {batch_idx + 1}/{steps}", loss=trainer.callback_metrics.get("train/loss_step")
            )

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        row = {"epoch": trainer.current_epoch + 1, "train/loss": metrics["train/loss_epoch"]}
        if self.validated:  # in other epochs the values of an earlier one are still there
            row |= {name: value for name, value in metrics.items() if name.startswith("val/")}
        self.history.append(row)
        val = {f"val_{name}": row.get(f"val/{name}") for name in (self.main_score, "loss")}
        self.line(trainer, loss=row["train/loss"], **val)
        if self.data_wait > MUCH_WAITING and self.step_end_s - self.epoch_s > 60 and trainer.is_global_zero:
            print(
                f"the model waited for its clips {self.data_wait:.0%} of the time: smaller videos with more key "
                "frames (`vivit prepare`) or more cores (data.num_workers); `vivit bench loader` says how many"
            )
        if trainer.is_global_zero:
            learning_curves(self.curves, self.history)

    def line(self, trainer: L.Trainer, *words: str, **numbers: Any) -> None:
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
            print("  ".join(shown), flush=True)


def clock(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{s:02}" if hours else f"{minutes}:{s:02}"


class ContactSheet(Callback):
    """Draws the first training batch as the model gets it, after augmentation and mixing."""

    def __init__(self, path: str | Path, clips: int = 8) -> None:
        self.path, self.clips = Path(path), clips

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        if trainer.global_step > 0 or batch_idx > 0 or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, VideoClassification)
        with torch.random.fork_rng():  # the same draws as the step that follows, without using them up
            torch.manual_seed(pl_module.step_seed(batch_idx))
            video_BCTHW, target = pl_module.training_input(batch)
        pixels = (video_BCTHW.transpose(1, 2)[: self.clips] * pl_module.std + pl_module.mean) / 255
        targets = zip(*(part[: self.clips].cpu() for part in pl_module.by_head(target)), strict=True)
        captions = [
            " | ".join(caption(t, names) for t, names in zip(row, pl_module.classes.values(), strict=True))
            for row in targets
        ]
        contact_sheet(
            self.path, pixels.float().cpu(), captions, batch["frame_numbers"].cpu(), batch["times_s"].cpu()
        )


def caption(target: torch.Tensor, classes: tuple[str, ...]) -> str:
    """The class or classes; after mixing those with the largest shares, and these."""
    if target.ndim == 0:
        return classes[int(target)]
    if target.dtype == torch.bool:
        return ", ".join(name for name, has in zip(classes, target.tolist(), strict=True) if has) or "none"
    shares, ids = target.topk(min(SHARES, len(classes)))
    pairs = zip(shares.tolist(), ids.tolist(), strict=True)
    return " + ".join(f"{share:.2f} {classes[i]}" for share, i in pairs if share >= 0.005) or "none"
