"""A guard that never takes an optimizer step with a non-finite loss or gradient, and saves it for analysis."""

import logging
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor

from vivit_train.data.annotations.table import ClipTable
from vivit_train.data.datamodule import VideoDataModule
from vivit_train.data.dataset import ClipBatch
from vivit_train.training.checkpoint import KEY
from vivit_train.training.profiling import full_tensor, total_norm
from vivit_train.training.resume import AtomicCheckpointIO
from vivit_train.training.task import VideoTask
from vivit_train.utils import distributed
from vivit_train.utils.errors import UserError
from vivit_train.utils.text import printable

log = logging.getLogger(__name__)

REPLAY = "replay"  # A saved step has this key.
# This many non-finite steps in a row are not caused by the clips. A loss scale can take up to 17 to settle.
IN_A_ROW = 20
FILES = 5  # A run saves at most this many skipped steps, because each file contains the model's weights.


class SavedBatch(ClipBatch):
    """A micro-batch of a saved step.

    Attributes:
        paths: The path of each clip's video.
        seed: The seed of mixing and stochastic depth.
        loss: The loss in the run.
    """

    paths: list[str]
    seed: int
    loss: float


class NonFiniteGuard(Callback):
    """A callback that checks the weights, and the loss and gradient of each optimizer step before it is taken.

    A step with a non-finite loss or gradient is not taken, so weights and optimizer state stay unchanged. The step
    is saved for `vivit replay`: the clips and seeds of its micro-batches, and the weights. Each rank saves its own
    clips, rank 0 reports for all ranks, and all ranks make the same decision.

    Losses and gradients are read once per optimizer step, which synchronizes with the device. Until then, the
    uint8 micro-batches of the step stay in device memory.

    With precision 16-mixed, a finite loss with a non-finite gradient only means that the loss scale must be
    halved. Lightning skips that step, and this callback only counts it toward IN_A_ROW.

    Args:
        on_nonfinite: "stop" ends the run. "skip" continues with the next step: the schedule advances, the clips of
            the skipped step are not repeated, and `train/skipped_steps` counts it. IN_A_ROW non-finite steps in a
            row end the run.
        folder: The folder of the saved steps. A run saves at most FILES of them.

    Raises:
        UserError: A step is non-finite, or a checkpoint would contain non-finite weights.
    """

    def __init__(self, on_nonfinite: Literal["stop", "skip"], folder: str | Path) -> None:
        self.on_nonfinite, self.folder = on_nonfinite, Path(folder)
        self.skipped = self.in_a_row = self.found = 0
        # The micro-batches of the current optimizer step so far, with their seeds.
        self.inputs: list[tuple[ClipBatch, int]] = []
        self.losses: list[Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped, self.in_a_row = state_dict["skipped"], state_dict["in_a_row"]

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: ClipBatch, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, VideoTask)
        self.inputs.append((batch, pl_module.step_seed(batch_idx)))

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        self.losses.append(loss.detach().float())

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        inputs, losses = self.inputs, self.losses
        self.inputs, self.losses = [], []
        norm = total_norm(p.grad for p in pl_module.parameters() if p.grad is not None)
        *values, norm_value = torch.stack([*losses, norm.float()]).tolist()
        bad = [i for i, value in enumerate(values) if not is_finite(value)]
        bad_loss, bad_norm = distributed.any_rank(bool(bad), not is_finite(norm_value))
        if not (bad_loss or bad_norm):
            self.in_a_row = 0
            return
        self.in_a_row += 1
        plugin = trainer.precision_plugin
        scaler = plugin.scaler if isinstance(plugin, MixedPrecision) else None
        if scaler is not None and not bad_loss and self.in_a_row < IN_A_ROW:
            return
        # Backward gets the loss divided by the number of micro-batches and multiplied by the loss scale.
        unit = trainer.accumulate_grad_batches / (1.0 if scaler is None else float(scaler.get_scale()))
        values = [value * unit for value in values]
        assert isinstance(pl_module, VideoTask)
        step = f"step {trainer.global_step + 1}"
        what = f"the gradient of {step} is not finite (norm {norm_value}), although the losses are"
        if bad_loss:
            what = f"the loss of {step} is not finite"
        mine = bad or ([] if bad_loss else list(range(len(inputs))))  # This rank reports these micro-batches.
        lines = [
            f"  micro-batch {i + 1} of {len(inputs)}{f', loss {values[i]}' if i in bad else ''}: {clip}"
            for i in mine
            for clip in clips(inputs[i][0], manifest(trainer))
        ]
        file = self.folder / f"step_{trainer.global_step + 1}_rank_{trainer.global_rank}.pt"
        self.found += 1
        if self.found <= FILES:
            weights = {
                f"net.{name}": full_tensor(value).cpu() for name, value in pl_module.net.state_dict().items()
            }
            if mine and pl_module.labeled:  # `vivit replay` repeats classifications.
                self.save(file, trainer, pl_module, weights, inputs, values, norm_value)
                lines += [f"`vivit replay {file}` shows where it started"] if file.exists() else []
        lines = [line for part in distributed.gather(lines) for line in part]
        if self.on_nonfinite == "skip" and self.in_a_row < IN_A_ROW:
            self.skipped += 1
            if trainer.is_global_zero:
                log.info("\n".join([f"{what}: skipping the step, the {ordinal(self.skipped)} so far", *lines]))
            optimizer.zero_grad(set_to_none=True)  # Parameters without gradients are not updated.
            return
        again = f", the {ordinal(self.in_a_row)} in a row: not caused by the clips" if self.in_a_row > 1 else ""
        advice = (
            "the weights and checkpoints are unchanged since the step before. A lower optimizer.lr or "
            "trainer.gradient_clip_val, or trainer.precision=32-true, may help"
        )
        if self.on_nonfinite == "stop":
            advice += "; callbacks.health.on_nonfinite=skip skips non-finite steps"
        distributed.abort_all_ranks(UserError("\n".join([f"{what}{again}", *lines, advice])))

    def save(
        self,
        file: Path,
        trainer: L.Trainer,
        task: VideoTask,
        weights: dict[str, Tensor],
        inputs: list[tuple[ClipBatch, int]],
        losses: list[float],
        gradient_norm: float,
    ) -> None:
        """Saves the metadata and weights as in a checkpoint, together with the step, as plain data."""
        rows = manifest(trainer)
        micro_batches = [
            {name: x.cpu() for name, x in inputs_of(batch).items()}
            | {name: batch[name].cpu() for name in ("index", "frame_numbers", "times_s")}
            | {"paths": paths(batch, rows), "seed": seed, "loss": loss}
            for (batch, seed), loss in zip(inputs, losses, strict=True)
        ]
        step = {
            "step": trainer.global_step + 1,
            "epoch": trainer.current_epoch + 1,
            "rank": trainer.global_rank,
            "processes": trainer.world_size,
            "precision": str(trainer.precision),
            "device": task.device.type,
            "gradient_norm": gradient_norm,
            "micro_batches": micro_batches,
        }
        AtomicCheckpointIO().save_checkpoint({KEY: task.metadata, "state_dict": weights, REPLAY: step}, file)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: ClipBatch, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, VideoTask)
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined] # Loggers write at the same interval.
        if not self.inputs and trainer.global_step % every == 0:
            pl_module.log("train/weight_norm", total_norm(pl_module.net.parameters()))
        if self.on_nonfinite == "skip":
            pl_module.log("train/skipped_steps", float(self.skipped))

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        named = dict(pl_module.named_parameters())
        finite = torch.stack([full_tensor(weight.detach().isfinite().all()) for weight in named.values()])
        if not finite.all():
            first = list(named)[finite.tolist().index(False)]
            raise UserError(
                f"after step {trainer.global_step} weights are not finite ({first}, maybe more): the previous "
                "checkpoint stays. A lower optimizer.lr may help"
            )


def inputs_of(batch: ClipBatch) -> dict[str, Tensor]:
    """Returns what the training step needs of a batch: the pixels or the stored features, and the targets."""
    clips = {"video": batch["video"]} if "video" in batch else {"features": batch["features"]}
    return clips | {"label": batch["label"]}


def is_finite(value: float) -> bool:
    """Returns whether a number is neither NaN nor infinite."""
    return abs(value) < float("inf")  # This is False for NaN.


def manifest(trainer: L.Trainer) -> ClipTable:
    """Returns the table of the training clips."""
    data: Any = trainer
    assert isinstance(data.datamodule, VideoDataModule)
    return data.datamodule.splits.train


def paths(batch: ClipBatch, rows: ClipTable) -> list[str]:
    """Returns the file of each clip in a batch."""
    return [str(rows.paths[row]) for row in batch["index"].tolist()]


def clips(batch: ClipBatch, rows: ClipTable) -> list[str]:
    """Describes each clip in a batch by its file and its frames."""
    pairs = zip(paths(batch, rows), batch["frame_numbers"], strict=True)
    return [clip_text(path, frames) for path, frames in pairs]


def clip_text(path: str, frame_numbers_T: Tensor) -> str:
    """Describes a clip by its file and the range of its frames, without padding."""
    shown = [number for number in frame_numbers_T.tolist() if number >= 0]
    return f"{printable(path)}, frames {min(shown)} to {max(shown)}"


def ordinal(n: int) -> str:
    """Formats an ordinal number: "1st", "12th"."""
    ending = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{ending}"
