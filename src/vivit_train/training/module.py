"""The training step, from uint8 clips to the loss: normalize, mix, compute logits, compute the loss."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric

from vivit_train.data.dataset import ClipBatch
from vivit_train.data.transforms import mix_batch
from vivit_train.models.vivit import ViViT
from vivit_train.training.losses import CrossEntropy
from vivit_train.training.metrics import Rows, VideoTable, right_by_views, score, score_multi_label
from vivit_train.training.optim import Schedule
from vivit_train.training.task import VideoTask

Loss = Callable[[Tensor, Tensor], Tensor]
EPOCH_TOP1 = "epoch_top1"  # a key of a checkpoint


class VideoClassifier(VideoTask):
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
        super().__init__(net, mean, std, optimizer, schedule, layer_decay, seed, metadata)
        self.classes = {head: tuple(names) for head, names in classes.items()}
        self.heads = {head: len(names) for head, names in self.classes.items()}
        self.multi_label = multi_label
        self.criterion: Any = CrossEntropy(multi_label=multi_label) if loss is None else loss
        if isinstance(loss, Sequence):
            self.criterion = nn.ModuleList(loss)  # type: ignore[arg-type]
        self.mixup, self.cutmix = mixup, cutmix
        self.epoch_top1 = MeanMetric(nan_strategy="disable")
        self.table = VideoTable()
        self.val_rows: Rows = {}
        self.test_rows: Rows = {}

    @property
    def epoch_metrics(self) -> dict[str, MeanMetric]:
        return super().epoch_metrics | {EPOCH_TOP1: self.epoch_top1}

    def training_step(self, batch: ClipBatch, batch_idx: int) -> Tensor:
        video_BCTHW, target = self.training_input(batch)
        logits_BK = self.logits(video_BCTHW)
        loss = self.loss(logits_BK, target)
        if not self.multi_label:
            self.epoch_top1.update(self.hits(logits_BK.detach(), target).float())
            self.log("train/top1", self.epoch_top1, on_step=False, on_epoch=True, logger=False)
        self.log_loss(loss, len(target))
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

    def score_views(self, batch: ClipBatch) -> None:
        """Adds one row per video, with logits averaged over its views."""
        logits_BVK, label = self.view_logits(batch), batch["label"]
        right_BV = None
        if logits_BVK.shape[1] > 1:
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
        return "map" if self.multi_label else "action_top1" if len(self.heads) > 1 else "top1"

    @property
    def val_scores(self) -> Collection[str]:
        classes = sum(self.heads.values())
        label = np.zeros((1, classes), np.bool) if self.multi_label else np.zeros((1, len(self.heads)), np.int64)
        failed, index = np.zeros(1, np.bool), np.zeros(1, np.int64)
        logits = np.zeros((1, classes), np.float32)
        return self.scores({"index": index, "label": label, "logits": logits, "failed": failed}).keys()

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
