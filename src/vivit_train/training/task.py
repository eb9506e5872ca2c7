"""What every task shares: normalization, optimizer and schedule, seeds of steps, and exact resume."""

from collections.abc import Callable, Collection, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torchmetrics import MeanMetric

from vivit_train.data.dataset import ClipBatch
from vivit_train.data.transforms import mix_seed
from vivit_train.models.layers import Block
from vivit_train.models.vivit import ViViT
from vivit_train.training.checkpoint import KEY
from vivit_train.training.optim import Schedule, parameter_groups
from vivit_train.training.profiling import forward_flops, full_tensor
from vivit_train.training.resume import (
    align_loop_progress,
    check_optimizer,
    check_schedules,
    keep_paths_inside,
    shift_loop_progress,
    to_fqn_order,
    use_settings,
)
from vivit_train.utils.errors import UserError, reason

# These are keys of a checkpoint.
EPOCH_LOSS, ACCUMULATION = "epoch_loss", "accumulation"


class VideoTask(L.LightningModule):
    """A LightningModule that trains a ViViT; a subclass has the step and what a validation says.

    A subclass logs val/score, of which higher is better, and the metric of the name `main_score`.

    Args:
        net: The model, which takes clips [B, C, T, H, W].
        mean: The per-channel mean of the normalization, for pixels in [0, 1].
        std: The per-channel standard deviation of the normalization, for pixels in [0, 1].
        optimizer: A function from parameter groups to an optimizer. Its `lr` is the base learning rate, and its
            `weight_decay` applies to weight matrices.
        schedule: A function from the optimizer step to a factor of the base learning rate, or one of torch's
            schedulers as a partial that takes the optimizer.
        layer_decay: The factor of the learning rate from each layer to the one below; None is the same for all.
        seed: The seed of the random draws of each step.
        metadata: Plain data that is saved in every checkpoint; see checkpoint.py.

    Attributes:
        labeled: Whether the task learns from labels. Otherwise, they are not read, and a checkpoint has no head.
        reads_videos: Whether its batches have "video". Those of stored features do not.
    """

    labeled: ClassVar[bool] = True
    reads_videos: ClassVar[bool] = True
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        net: ViViT,
        mean: Sequence[float],
        std: Sequence[float],
        optimizer: Callable[..., torch.optim.Optimizer],
        schedule: Schedule | partial[LRScheduler],
        layer_decay: float | None,
        seed: int,
        metadata: dict[str, Any] | None,
    ) -> None:
        super().__init__()
        self.net = net
        self.optimizer, self.schedule = optimizer, schedule
        self.layer_decay, self.seed = layer_decay, seed
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1) * 255, persistent=False)
        self.metadata = metadata or {}
        # MeanMetric's own NaN check would synchronize with the device at every micro-batch.
        self.epoch_loss = MeanMetric(nan_strategy="disable")

    @property
    def trained(self) -> nn.Module:
        """The module whose parameters the optimizer gets."""
        return self.net

    @property
    def epoch_metrics(self) -> dict[str, MeanMetric]:
        """The metrics of the training epoch so far, by their keys in a checkpoint."""
        return {EPOCH_LOSS: self.epoch_loss}

    @property
    def main_score(self) -> str:
        """The name of the validation metric that selects the best checkpoint."""
        raise NotImplementedError

    @property
    def val_scores(self) -> Collection[str]:
        """The names of the scores of a validation, besides "score"; empty if they are not known."""
        return ()

    def configure_model(self) -> None:
        """Shards every block with trainer=fsdp; a rank holds a whole block only while it computes it."""
        if self.device_mesh is None or isinstance(self.net, FSDPModule):
            return
        for module in self.net.modules():
            if isinstance(module, Block):
                fully_shard(module, mesh=self.device_mesh)
        fully_shard(self.net, mesh=self.device_mesh)

    @property
    def schedule_offset(self) -> int:
        """The number of optimizer steps beyond the position in the schedule.

        It is nonzero only if data.changed=accept has changed the number of steps per epoch.
        """
        data = self._trainer and self._trainer.datamodule  # type: ignore[attr-defined]
        return getattr(data, "schedule_offset", 0)

    @cached_property
    def forward_flops(self) -> int:
        """The number of floating-point operations of one clip's forward pass."""
        return forward_flops(self.net)

    def on_train_start(self) -> None:
        """Checks the loaded state of the optimizer, and sets the learning rate of this run's schedule.

        The schedule can differ from that of the checkpoint.

        Raises:
            UserError: The state of the optimizer does not fit the weights.
        """
        for optimizer in self.trainer.optimizers:
            check_optimizer(optimizer, self.trainer.ckpt_path)
        schedule: Any = self.lr_schedulers()
        if not isinstance(schedule, LambdaLR):  # A scheduler of torch has its own state.
            return
        for group, lr, factor in zip(
            schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
        ):
            group["lr"] = lr * factor(schedule.last_epoch)

    def on_train_epoch_start(self) -> None:  # Lightning skips this if a run resumes in mid-epoch.
        for metric in self.epoch_metrics.values():
            metric.reset()

    def on_train_epoch_end(self) -> None:
        """Logs the loss and top-1 of the epoch before the checkpoint of the epoch is written.

        Lightning would log them afterwards, and a run that is killed in between would never log them.
        """
        names = ("train/loss_epoch", "train/top1")
        metrics = {n: float(value) for n, value in self.trainer.callback_metrics.items() if n in names}
        for logger in self.trainer.loggers:
            logger.log_metrics(metrics | {"epoch": self.current_epoch}, self.trainer.global_step - 1)

    def on_train_batch_start(self, batch: ClipBatch, batch_idx: int) -> None:
        torch.manual_seed(self.step_seed(batch_idx))

    def step_seed(self, batch_idx: int) -> int:
        """Returns the seed of the random draws of a step and rank; a resumed run repeats it."""
        return mix_seed(self.seed, self.current_epoch, batch_idx, self.global_rank)

    def log_loss(self, loss: Tensor, clips: int) -> None:
        """Logs the loss of a micro-batch, the mean of the epoch so far, and the learning rate."""
        finite = loss.detach().isfinite()  # callbacks.health handles non-finite losses.
        self.epoch_loss.update(torch.where(finite, loss.detach(), 0.0), finite * clips)
        self.log("train/loss_step", loss, prog_bar=True)
        self.log("train/loss_epoch", self.epoch_loss, on_step=False, on_epoch=True, logger=False)
        self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"])

    def noise(self, clips: int, device: torch.device | str | None = None) -> Tensor:
        """Returns an input of `forward` that is noise, for measurements: uint8 clips [B, T, C, H, W]."""
        channels, frames, height, width = self.net.input_shape
        shape = (clips, frames, channels, height, width)
        return torch.randint(256, shape, dtype=torch.uint8, device=device or self.device)

    def normalise(self, video_uint8: Tensor) -> Tensor:
        """Normalizes uint8 pixels with the mean and std of each channel."""
        return (video_uint8.to(self.mean.dtype) - self.mean) / self.std

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips the gradient by its norm, or each of its values, and logs its norm before clipping."""
        by_value = gradient_clip_algorithm == "value"
        limit = float("inf") if gradient_clip_val is None or by_value else gradient_clip_val
        self.log("train/grad_norm", full_tensor(torch.nn.utils.clip_grad_norm_(self.parameters(), limit)))
        if gradient_clip_val is not None and by_value:
            torch.nn.utils.clip_grad_value_(self.parameters(), gradient_clip_val)

    def configure_optimizers(self) -> Any:
        try:
            groups = parameter_groups(self.trained, self.layer_decay)
            for group in groups if self.layer_decay is not None else ():
                group["lr"] = getattr(self.optimizer, "keywords", {})["lr"] * group["lr_scale"]
            optimizer = self.optimizer(groups)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"optimizer: {reason(error)}") from error
        schedule = self.build_schedule(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def build_schedule(self, optimizer: torch.optim.Optimizer) -> LRScheduler:
        """Returns the learning-rate scheduler, which takes one step after each optimizer step.

        Raises:
            UserError: A scheduler of torch refuses its arguments.
        """
        if not isinstance(self.schedule, partial):
            factor = self.schedule
            return LambdaLR(optimizer, lambda step: factor(step - self.schedule_offset))
        try:
            return self.schedule(optimizer)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"scheduler: {reason(error)}") from error

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[KEY] = self.metadata
        checkpoint[ACCUMULATION] = self.trainer.accumulate_grad_batches
        if self.device_mesh is None:
            states = checkpoint.get("optimizer_states", [])  # A weights-only checkpoint has none.
            for state, optimizer in zip(states, self.trainer.optimizers, strict=False):
                to_fqn_order(state, optimizer, self)
        # This is saved because a run may resume in the middle of an epoch.
        for key, metric in self.epoch_metrics.items():
            with metric.sync_context():
                checkpoint[key] = dict(metric.metric_state)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for callback in self.trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath:
                keep_paths_inside(checkpoint.get("callbacks", {}), Path(callback.dirpath))
        if self.global_rank == 0:  # The saved state is the sum over all ranks, so the others start from zero.
            for key, metric in self.epoch_metrics.items():
                for name, value in checkpoint.get(key, {}).items():
                    setattr(metric, name, value.to(self.device))
        # Use this run's settings instead of the saved ones: they may have changed, and this strategy may not
        # support a fused kernel. With FSDP, the optimizer is already loaded here.
        settings = getattr(self.optimizer, "keywords", {})
        loaded = [optimizer.param_groups for optimizer in self.trainer.optimizers]
        for groups in (*loaded, *(state["param_groups"] for state in checkpoint["optimizer_states"])):
            for number, group in enumerate(groups):
                use_settings(group, settings, decays=number % 2 == 0)
        check_schedules(checkpoint["lr_schedulers"])
        if "lr" in settings:
            for state in checkpoint["lr_schedulers"]:
                scales = [1.0] * len(state["base_lrs"])
                if self.layer_decay is not None:
                    scales = [group["lr_scale"] for group in parameter_groups(self.trained, self.layer_decay)]
                state["base_lrs"] = [settings["lr"] * scale for scale in scales]
        loops, now = checkpoint["loops"]["fit_loop"], self.trainer.accumulate_grad_batches
        progress = loops["epoch_loop.batch_progress"]
        align_loop_progress(loops["epoch_loop.state_dict"], progress, checkpoint.get(ACCUMULATION, now), now)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        before = checkpoint.get(type(data).__qualname__, {}).get("steps_per_epoch")
        if before not in (None, data.steps_per_epoch):
            shift_loop_progress(progress, before * now, data.steps_per_epoch * now, now)
