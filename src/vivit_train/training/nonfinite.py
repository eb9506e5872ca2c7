"""A step whose loss or gradient is not finite is never taken, and can be looked at afterwards."""

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
from vivit_train.training.checkpoint import KEY
from vivit_train.training.module import Batch, VideoClassifier
from vivit_train.training.profiling import full_tensor, total_norm
from vivit_train.training.resume import AtomicCheckpointIO
from vivit_train.utils import distributed
from vivit_train.utils.errors import UserError
from vivit_train.utils.text import printable

log = logging.getLogger(__name__)

REPLAY = "replay"  # in a saved step
IN_A_ROW = 20  # steps that are not finite, then it is not the clips; a loss scale needs up to 17 to find its place
FILES = 5  # steps of a run that skips; each file holds the model's weights


class NonFiniteGuard(Callback):
    """Looks at each optimizer step's loss and gradient before it is taken, and at the weights.

    A step whose loss or gradient is not finite is not taken: weights and optimizer stay as they were. What it was
    made of is saved for `vivit replay`: the clips of its micro-batches, their seeds, and the weights. Of several
    processes each saves its own clips, the first one says all, and all decide the same.

    Losses and gradient are read once per optimizer step, which waits for the device. Until then the micro-batches
    of the step stay in its memory, as uint8.

    With precision 16-mixed a finite loss with another gradient only means that its scale is to be halved; then
    Lightning leaves the step out, and it counts in a row alone.

    Args:
        on_nonfinite: "stop" ends the run; "skip" goes on with the next step: the schedule counts this one too, its
            clips do not come again, and `train/skipped_steps` counts it. IN_A_ROW of them end the run.
        folder: of the saved steps; of a run that skips, the first FILES.

    Raises:
        UserError: at a step that is not finite, or instead of a checkpoint of weights that are not.
    """

    def __init__(self, on_nonfinite: Literal["stop", "skip"], folder: str | Path) -> None:
        self.on_nonfinite, self.folder = on_nonfinite, Path(folder)
        self.skipped = self.in_a_row = self.found = 0
        self.inputs: list[tuple[Batch, int]] = []  # of this optimizer step so far: micro-batches and their seeds
        self.losses: list[Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped, self.in_a_row = state_dict["skipped"], state_dict["in_a_row"]

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, VideoClassifier)
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
        # what is sent backward is the mean's share, and scaled
        unit = trainer.accumulate_grad_batches / (1.0 if scaler is None else float(scaler.get_scale()))
        values = [value * unit for value in values]
        assert isinstance(pl_module, VideoClassifier)
        # `global_step` counts the steps that are done
        step = f"step {trainer.global_step + 1}"
        what = f"the gradient of {step} is not finite (its norm is {norm_value}), though the losses are"
        if bad_loss:
            what = f"the loss of {step} is not finite"
        mine = bad or ([] if bad_loss else list(range(len(inputs))))  # whose clips this process answers for
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
            if mine:
                self.save(file, trainer, pl_module, weights, inputs, values, norm_value)
                lines += [f"`vivit replay {file}` says where it arose"] if file.exists() else []
        lines = [line for part in distributed.gather(lines) for line in part]
        if self.on_nonfinite == "skip" and self.in_a_row < IN_A_ROW:
            self.skipped += 1
            if trainer.is_global_zero:
                log.info("\n".join([f"{what}: the step is left out, the {ordinal(self.skipped)} so far", *lines]))
            optimizer.zero_grad(set_to_none=True)  # what has no gradient keeps its weights and moments
            return
        again = f", the {ordinal(self.in_a_row)} in a row: it is not the clips" if self.in_a_row > 1 else ""
        advice = (
            "the weights are those of the step before, and so are the checkpoints. A lower recipe.optimizer.lr or "
            "recipe.clip_grad_norm, or trainer.precision=32-true, may help"
        )
        if self.on_nonfinite == "stop":
            advice += "; callbacks.health.on_nonfinite=skip leaves such steps out"
        distributed.abort_all_ranks(UserError("\n".join([f"{what}{again}", *lines, advice])))

    def save(
        self,
        file: Path,
        trainer: L.Trainer,
        task: VideoClassifier,
        weights: dict[str, Tensor],
        inputs: list[tuple[Batch, int]],
        losses: list[float],
        gradient_norm: float,
    ) -> None:
        """A checkpoint's metadata and weights, and with them the step: plain data."""
        rows = manifest(trainer)
        micro_batches = [
            {name: batch[name].cpu() for name in ("video", "label", "index", "frame_numbers", "times_s")}
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
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, VideoClassifier)
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined] # the loggers write as seldom
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
                f"after step {trainer.global_step} weights are not finite ({first}, or more): the checkpoint "
                "before stays. A lower recipe.optimizer.lr may help"
            )


def is_finite(value: float) -> bool:
    return abs(value) < float("inf")  # which a nan is not


def manifest(trainer: L.Trainer) -> ClipTable:
    data: Any = trainer
    assert isinstance(data.datamodule, VideoDataModule)
    return data.datamodule.splits.train


def paths(batch: Batch, rows: ClipTable) -> list[str]:
    return [str(rows.paths[row]) for row in batch["index"].tolist()]


def clips(batch: Batch, rows: ClipTable) -> list[str]:
    """Of each clip its file and the frames of it."""
    pairs = zip(paths(batch, rows), batch["frame_numbers"], strict=True)
    return [clip_text(path, frames) for path, frames in pairs]


def clip_text(path: str, frame_numbers_T: Tensor) -> str:
    shown = [number for number in frame_numbers_T.tolist() if number >= 0]  # without padding
    return f"{printable(path)}, frames {min(shown)} to {max(shown)}"


def ordinal(n: int) -> str:
    ending = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{ending}"
