"""The step of self-pretraining, from uint8 clips without labels to the loss: mask, encode, decode, compare."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from vivit_train.data.dataset import ClipBatch
from vivit_train.data.transforms import mix_seed
from vivit_train.models.masked import Decoder, clip_losses, problems_of, targets, tube_masks, visible_tokens
from vivit_train.models.vivit import ViViT
from vivit_train.training.metrics import VideoTable
from vivit_train.training.optim import Schedule
from vivit_train.training.profiling import forward_flops
from vivit_train.training.task import VideoTask
from vivit_train.utils.errors import UserError

VALIDATION = 2**31 - 1  # Stands for the epoch in the seeds of masks that are the same in each validation.


class MaskedPretraining(VideoTask):
    """A LightningModule that trains a ViViT to predict masked tubelets of clips (VideoMAE, arXiv 2203.12602).

    The mask of a training clip is a function of (seed, epoch, row of the clip), for any number of devices, and
    that of a validation clip is one of (seed, row).

    Args:
        net: The model. It has no head.
        mean: The per-channel mean of the normalization, for pixels in [0, 1].
        std: The per-channel standard deviation of the normalization, for pixels in [0, 1].
        mask_ratio: The share of the places of the image that are masked, in all frames.
        decoder_dim: The width of the decoder; None is half of the model's.
        decoder_depth: The number of layers of the decoder.
        decoder_heads: The number of attention heads of the decoder; None is half of the model's.
        optimizer, schedule, seed, metadata: See `VideoTask`.

    Raises:
        UserError: The model cannot be pretrained, or the sizes of the decoder do not fit together.
    """

    labeled = False

    def __init__(
        self,
        net: ViViT,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        mask_ratio: float = 0.75,
        decoder_dim: int | None = None,
        decoder_depth: int = 4,
        decoder_heads: int | None = None,
        optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
        schedule: Schedule | partial[LRScheduler] = lambda step: 1.0,
        seed: int = 0,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(net, mean, std, optimizer, schedule, None, seed, metadata)
        if problems := problems_of(net):
            raise UserError("\n".join(f"task=pretrain: {problem}" for problem in problems))
        self.mask_ratio = mask_ratio
        dim = net.head.in_features
        try:
            self.decoder = Decoder(
                dim,
                net.grid,
                net.embedding.projection.weight[0].numel(),
                decoder_dim=decoder_dim or max(1, dim // 2),
                depth=decoder_depth,
                heads=decoder_heads or max(1, net.heads // 2),
            )
        except ValueError as error:
            raise UserError(f"task=pretrain: {error}: set task.decoder_dim and task.decoder_heads") from error
        net.head.requires_grad_(False)
        self.table = VideoTable()

    @property
    def trained(self) -> nn.Module:
        return self

    @property
    def main_score(self) -> str:
        return "loss"

    @cached_property
    def forward_flops(self) -> int:
        return forward_flops(self, self.noise(1, device="meta"))

    def training_step(self, batch: ClipBatch, batch_idx: int) -> Tensor:
        loss = self.losses(batch["video"], self.clip_seeds(batch["index"].tolist(), self.current_epoch)).mean()
        self.log_loss(loss, len(batch["video"]))
        return loss

    def clip_seeds(self, rows: Sequence[int], epoch: int) -> list[int]:
        """Returns the seed of the mask of each clip; further clips of one video in a micro-batch differ."""
        seen: Counter[int] = Counter()
        seeds = []
        for row in rows:
            seeds.append(mix_seed(self.seed, epoch, row, seen[row]))
            seen[row] += 1
        return seeds

    def losses(self, video_BTCHW: Tensor, seeds: Sequence[int]) -> Tensor:
        """Returns the loss of each uint8 clip under the mask of its seed, [B]."""
        predicted_BtmP, _, masked_Bm = self.predict_masked(video_BTCHW, seeds)
        return clip_losses(predicted_BtmP, targets(self.net, video_BTCHW, masked_Bm))

    def predict_masked(self, video_BTCHW: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the predicted pixels of the masked tubelets, and the visible and the masked places of clips."""
        _, rows, columns = self.net.grid
        masks = tube_masks(seeds, rows * columns, self.mask_ratio)
        kept_Bk, masked_Bm = (places.to(video_BTCHW.device) for places in masks)
        x_BtkD = visible_tokens(self.net, self.normalise(video_BTCHW).transpose(1, 2), kept_Bk)
        return self.decoder(x_BtkD, kept_Bk, masked_Bm), kept_Bk, masked_Bm

    def forward(self, video_BTCHW: Tensor) -> Tensor:
        """Returns the loss of each uint8 clip under a mask of its own, [B]."""
        return self.losses(video_BTCHW, range(len(video_BTCHW)))

    def validation_step(self, batch: ClipBatch, batch_idx: int) -> None:
        clips_BTCHW = batch["video"][:, 0]
        losses_B = self.losses(clips_BTCHW, self.clip_seeds(batch["index"].tolist(), VALIDATION))
        self.table.update(batch["index"], losses_B[:, None], batch["label"], batch["failed"])

    @property
    def val_scores(self) -> Collection[str]:
        return ("loss", "n", "failed")

    def on_validation_epoch_end(self) -> None:
        rows = self.table.compute()
        failed = rows["failed"]
        loss = float(rows["logits"][~failed].mean()) if not failed.all() else float("nan")
        for name, value in {"loss": loss, "n": float(len(failed)), "failed": float(failed.sum())}.items():
            self.log(f"val/{name}", value, prog_bar=name == self.main_score)
        self.log("val/score", -loss)  # Callbacks and sweeps look for the highest.
        self.table.reset()
