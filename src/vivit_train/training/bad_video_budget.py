"""The callback that shares unreadable videos among the ranks and enforces `data.max_bad_fraction`."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from vivit_train.data.datamodule import VideoDataModule
from vivit_train.data.dataset import ClipBatch
from vivit_train.utils import distributed

# Sharing takes well under a millisecond, but every rank waits until the slowest one has come as far. Ten steps of
# training on replaced videos are a small loss.
SHARED_EVERY = 10


class BadVideoBudget(Callback):
    """A callback that stops all ranks if too many training videos are unreadable.

    A single process checks each batch. Several ranks share what they have found every `SHARED_EVERY` optimizer
    steps, after each epoch, validation and test, and whenever they save a checkpoint. All ranks reach these points
    together. The messages go between CPUs, so no GPU is synchronized.

    `build_trainer` installs it in every trainer. It does nothing without a `VideoDataModule`.

    Raises:
        UserError: More than `data.max_bad_fraction` of the training videos are unreadable, or no readable video
            was found for a clip.
    """

    def share(self, trainer: L.Trainer) -> None:
        """Shares the log and checks the budget. All ranks must call this together."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, VideoDataModule):
            return
        found = data.bad_videos.share()
        if "train" in found and trainer.state.fn == TrainerFn.FITTING:
            num_videos = len(data.splits.train)
            if data.bad_videos.is_over_budget(num_videos):
                distributed.abort_all_ranks(data.bad_videos.error(num_videos))

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: ClipBatch, batch_idx: int
    ) -> None:
        micro_batches = SHARED_EVERY * trainer.accumulate_grad_batches
        if distributed.count() == 1 or batch_idx % micro_batches == 0:
            self.share(trainer)
        if "label" not in batch:  # This rank cannot go on, whether or not the others can.
            data = trainer.datamodule  # type: ignore[attr-defined]
            raise data.bad_videos.error(len(data.splits.train))

    def on_validation_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if distributed.count() == 1:
            self.share(trainer)

    def on_test_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if distributed.count() == 1:
            self.share(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.share(trainer)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.share(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.share(trainer)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Completes the data module's state, which Lightning has already put into the checkpoint."""
        self.share(trainer)
        data = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, VideoDataModule):
            checkpoint[VideoDataModule.__qualname__]["bad_videos"] = data.bad_videos.known["train"]
