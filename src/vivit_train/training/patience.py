"""Ends training when the validation score has stopped improving."""

import logging
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping

from vivit_train.utils.arguments import conforms
from vivit_train.utils.errors import UserError
from vivit_train.utils.text import plural

log = logging.getLogger(__name__)


class Patience(EarlyStopping):
    """A callback that ends training after a number of validations without a better val/score.

    Its count is part of a checkpoint. The patience is that of this run.

    Args:
        patience: The number of validations.
    """

    def __init__(self, patience: int) -> None:
        super().__init__("val/score", patience=patience, mode="max", check_on_train_epoch_end=False)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.wait_count >= self.patience:  # The run that is resumed had ended.
            trainer.should_stop = True
            self.report("nothing is trained")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        stopped = trainer.should_stop
        super().on_validation_end(trainer, pl_module)
        if trainer.should_stop and not stopped:
            self.report("training ends")

    def report(self, outcome: str) -> None:
        log.info(
            f"{outcome}: val/score has not improved in {plural(self.wait_count, 'validation')} "
            f"(patience={self.patience}; its best is {float(self.best_score):.4f})"
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads the count.

        Raises:
            UserError: The state is damaged.
        """
        count, best = state_dict.get("wait_count"), state_dict.get("best_score")
        if not conforms(count, int) or getattr(best, "numel", int)() != 1:
            raise UserError("the checkpoint cannot be resumed: the state of patience is damaged")
        super().load_state_dict(state_dict | {"stopped_epoch": 0, "patience": self.patience})
