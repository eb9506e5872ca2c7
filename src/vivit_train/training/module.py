"""The training step, from uint8 clips to the loss: normalize, mix, compute logits, compute the loss."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torchmetrics import MeanMetric

from vivit_train.data.dataset import ClipBatch
from vivit_train.data.transforms import mix_batch, mix_seed
from vivit_train.models.layers import Block
from vivit_train.models.vivit import ViViT
from vivit_train.training.checkpoint import KEY
from vivit_train.training.losses import CrossEntropy
from vivit_train.training.metrics import Rows, VideoTable, right_by_views, score, score_multi_label
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

Loss = Callable[[Tensor, Tensor], Tensor]
# These are keys of a checkpoint.
EPOCH_LOSS, EPOCH_TOP1, ACCUMULATION = "epoch_loss", "epoch_top1", "accumulation"


class VideoClassifier(L.LightningModule):
    """A LightningModule that trains and evaluates a ViViT.

    Args:
        net: The model, which takes clips [B, C, T, H, W].
        classes: The class names of each head in the order of the logits. A single head has the name "".
        mean: The per-channel mean of the normalization, for pixels in [0, 1].
        std: The per-channel standard deviation of the normalization, for pixels in [0, 1].
        multi_label: Whether a video may have any number of classes, each with an independent probability.
        loss: The loss of one head, a function of its logits [B, K] and target; see `CrossEntropy.forward`. A
            sequence has one loss per head. None is the cross-entropy.
        optimizer: A function from parameter groups to an optimizer. Its `lr` is the base learning rate, and its
            `weight_decay` applies to weight matrices.
        schedule: A function from the optimizer step to a factor of the base learning rate, or one of torch's
            schedulers as a partial that takes the optimizer.
        layer_decay: The factor of the learning rate from each layer to the one below; None is the same for all.
        mixup: The alpha of mixup; 0 disables it.
        cutmix: The alpha of CutMix; 0 disables it.
        seed: The seed of mixing and stochastic depth.
        metadata: Plain data that is saved in every checkpoint; see checkpoint.py.
    """

    mean: Tensor
    std: Tensor
    reads_videos = True  # Its training batches have "video"; those of stored features do not (see cached.py).

    def __init__(
        self,
        net: ViViT,
        classes: Mapping[str, Sequence[str]],
        mean: Sequence[float],
        std: Sequence[float],
        *,
        multi_label: bool = False,
        loss: Loss | Sequence[Loss] | None = None,
        optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
        schedule: Schedule | partial[LRScheduler] = lambda step: 1.0,
        layer_decay: float | None = None,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        seed: int = 0,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.classes = {head: tuple(names) for head, names in classes.items()}
        self.heads = {head: len(names) for head, names in self.classes.items()}
        self.multi_label = multi_label
        self.criterion: Any = CrossEntropy(multi_label=multi_label) if loss is None else loss
        if isinstance(loss, Sequence):
            self.criterion = nn.ModuleList(loss)  # type: ignore[arg-type]
        self.optimizer, self.schedule = optimizer, schedule
        self.layer_decay, self.mixup, self.cutmix, self.seed = layer_decay, mixup, cutmix, seed
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1) * 255, persistent=False)
        self.metadata = metadata or {}
        # MeanMetric's own NaN check would synchronize with the device at every micro-batch.
        self.epoch_loss, self.epoch_top1 = MeanMetric(nan_strategy="disable"), MeanMetric(nan_strategy="disable")
        self.table = VideoTable()
        self.val_rows: Rows = {}
        self.test_rows: Rows = {}

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
        self.epoch_loss.reset()
        self.epoch_top1.reset()

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
        """Returns the seed of mixing and stochastic depth for a step and rank; a resumed run repeats it."""
        return mix_seed(self.seed, self.current_epoch, batch_idx, self.global_rank)

    def training_step(self, batch: ClipBatch, batch_idx: int) -> Tensor:
        video_BCTHW, target = self.training_input(batch)
        logits_BK = self.logits(video_BCTHW)
        loss = self.loss(logits_BK, target)
        finite = loss.detach().isfinite()  # callbacks.health handles non-finite losses.
        self.epoch_loss.update(torch.where(finite, loss.detach(), 0.0), finite * len(target))
        if not self.multi_label:
            self.epoch_top1.update(self.hits(logits_BK.detach(), target).float())
            self.log("train/top1", self.epoch_top1, on_step=False, on_epoch=True, logger=False)
        self.log("train/loss_step", loss, prog_bar=True)
        self.log("train/loss_epoch", self.epoch_loss, on_step=False, on_epoch=True, logger=False)
        self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        return loss

    def training_input(self, batch: ClipBatch) -> tuple[Tensor, Tensor]:
        """Returns the input of the net, [B, C, T, H, W], and its targets.

        Targets are class ids [B, heads], or bools [B, K] for multi-label data; after mixing, they are class shares
        [B, K].
        """
        video_BTCHW, target = self.normalise(batch["video"]), batch["label"]
        if self.mixes:
            video_BTCHW, target = mix_batch(
                video_BTCHW, target, list(self.heads.values()), self.mixup, self.cutmix
            )
        return video_BTCHW.transpose(1, 2), target

    def forward(self, video_BTCHW: Tensor) -> Tensor:
        """Returns the logits [B, K] of uint8 clips; those of several heads are concatenated."""
        return self.logits(self.normalise(video_BTCHW).transpose(1, 2))

    def logits(self, video_BCTHW: Tensor) -> Tensor:
        """Returns the logits [B, K]; those of several heads are concatenated."""
        logits = self.net(video_BCTHW)
        return logits if isinstance(logits, Tensor) else torch.cat(list(logits.values()), dim=1)

    def loss(self, logits_BK: Tensor, target: Tensor) -> Tensor:
        """Returns the loss, averaged over the heads."""
        target = target.float() if target.dtype == torch.bool else target
        losses = (
            self.criterion if isinstance(self.criterion, nn.ModuleList) else [self.criterion] * len(self.heads)
        )
        parts = zip(losses, self.logits_by_head(logits_BK), self.by_head(target), strict=True)
        return torch.stack([loss(logits, head_target) for loss, logits, head_target in parts]).mean()

    def logits_by_head(self, logits_BK: Tensor) -> Sequence[Tensor]:
        """Splits logits by head, each [B, classes]."""
        return logits_BK.split(list(self.heads.values()), dim=1)

    def hits(self, logits_BK: Tensor, target: Tensor) -> Tensor:
        """Returns whether the largest logit of each head is that of the largest share of the target, bool [B]."""
        classes = [part if part.dtype == torch.int64 else part.argmax(1) for part in self.by_head(target)]
        parts = zip(self.logits_by_head(logits_BK), classes, strict=True)
        return torch.stack([logits.argmax(1) == class_B for logits, class_B in parts]).all(0)

    @property
    def mixes(self) -> bool:
        """Whether training mixes clips."""
        return bool(self.mixup or self.cutmix)

    def by_head(self, target: Tensor) -> Sequence[Tensor]:
        """Splits targets from `training_input` by head: class ids [B], or bools or shares [B, classes]."""
        return target.unbind(1) if target.dtype == torch.int64 else target.split(list(self.heads.values()), dim=1)

    def noise(self, clips: int) -> Tensor:
        """Returns an input of `logits` that is noise, for measurements."""
        return torch.randn(clips, *self.net.input_shape, device=self.device)

    def normalise(self, video_uint8: Tensor) -> Tensor:
        """Normalizes uint8 pixels with the mean and std of each channel."""
        return (video_uint8.to(self.mean.dtype) - self.mean) / self.std

    def score_views(self, batch: ClipBatch) -> None:
        """Adds one row per video, with logits averaged over its views."""
        logits_BVK, label = self.view_logits(batch), batch["label"]
        right_BV = None
        if logits_BVK.shape[1] > 1 and not self.multi_label:
            right_BV = right_by_views(logits_BVK, label, batch["index"], self.heads) & ~batch["failed"][:, None]
        self.table.update(batch["index"], logits_BVK.mean(1), label, batch["failed"], right_BV)

    def view_logits(self, batch: ClipBatch) -> Tensor:
        """Returns the logits of each view of each video, float32 [B, V, K]."""
        return self.each_view(self.logits, batch["video"])

    def mean_over_views(self, function: Callable[[Tensor], Tensor], views_BVTCHW: Tensor) -> Tensor:
        """Returns a function of clips, such as `logits`, averaged over the views of each video; float32 [B, ...].

        Args:
            function: A function of normalized clips [B, C, T, H, W].
            views_BVTCHW: The views of each video, uint8.
        """
        return self.each_view(function, views_BVTCHW).mean(1)

    def each_view(self, function: Callable[[Tensor], Tensor], views_BVTCHW: Tensor) -> Tensor:
        """Returns a function of clips of each view of each video, float32 [B, V, ...]; see `mean_over_views`."""
        B, V = views_BVTCHW.shape[:2]
        clips_BCTHW = self.normalise(views_BVTCHW.flatten(0, 1)).transpose(1, 2)
        return function(clips_BCTHW).unflatten(0, (B, V)).float()

    def validation_step(self, batch: ClipBatch, batch_idx: int) -> None:
        self.score_views(batch)

    def test_step(self, batch: ClipBatch, batch_idx: int) -> None:
        self.score_views(batch)

    @property
    def main_score(self) -> str:
        """The name of the score that selects the best checkpoint."""
        return "map" if self.multi_label else "action_top1" if len(self.heads) > 1 else "top1"

    def scores(self, rows: Rows) -> dict[str, float]:
        """Returns the scores of a table of videos."""
        return score_multi_label(rows) if self.multi_label else score(rows, self.heads)

    def on_validation_epoch_end(self) -> None:
        self.val_rows = self.table.compute()
        scores = self.scores(self.val_rows)
        for name, value in scores.items():
            self.log(f"val/{name}", value, prog_bar=name == self.main_score)
        self.log("val/score", scores[self.main_score])  # Callbacks and sweeps use this name for any labels.
        self.table.reset()

    def on_test_epoch_end(self) -> None:
        self.test_rows = self.table.compute()
        self.table.reset()

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips the gradient and logs its norm before clipping."""
        limit = float("inf") if gradient_clip_val is None else gradient_clip_val
        self.log("train/grad_norm", full_tensor(torch.nn.utils.clip_grad_norm_(self.parameters(), limit)))

    def configure_optimizers(self) -> Any:
        try:
            groups = parameter_groups(self.net, self.layer_decay)
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
        for key, metric in ((EPOCH_LOSS, self.epoch_loss), (EPOCH_TOP1, self.epoch_top1)):
            with metric.sync_context():
                checkpoint[key] = dict(metric.metric_state)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for callback in self.trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath:
                keep_paths_inside(checkpoint.get("callbacks", {}), Path(callback.dirpath))
        if self.global_rank == 0:  # The saved state is the sum over all ranks, so the others start from zero.
            for key, metric in ((EPOCH_LOSS, self.epoch_loss), (EPOCH_TOP1, self.epoch_top1)):
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
                    scales = [group["lr_scale"] for group in parameter_groups(self.net, self.layer_decay)]
                state["base_lrs"] = [settings["lr"] * scale for scale in scales]
        loops, now = checkpoint["loops"]["fit_loop"], self.trainer.accumulate_grad_batches
        progress = loops["epoch_loop.batch_progress"]
        align_loop_progress(loops["epoch_loop.state_dict"], progress, checkpoint.get(ACCUMULATION, now), now)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        before = checkpoint.get(type(data).__qualname__, {}).get("steps_per_epoch")
        if before not in (None, data.steps_per_epoch):
            shift_loop_progress(progress, before * now, data.steps_per_epoch * now, now)
