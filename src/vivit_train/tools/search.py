"""Ends a search's hopeless trials early."""

import logging
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Callback
from optuna.pruners import BasePruner
from optuna.trial import Trial

from vivit_train.tools.sweep import NOTE, PRUNED, STUDY, open_storage, open_study
from vivit_train.utils.errors import UserError

log = logging.getLogger(__name__)


class Pruning(Callback):
    """Tells Optuna val/score after each epoch, and ends the training where its pruner advises so. The run ends as
    others do: with the score of its best checkpoint.

    Args:
        storage: the search's file; trial: its number there.
        pruner: one of Optuna's.
        run_dir: gets a note for the sweep's table.

    Raises:
        UserError: at the start, where this is no trial of a search.
    """

    def __init__(self, storage: str, trial: int, pruner: BasePruner, run_dir: str) -> None:
        self.storage, self.number, self.pruner, self.run_dir = storage, trial, pruner, run_dir
        self.validated = False

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not Path(self.storage).is_file():
            raise UserError("hparams_search=optuna is for a sweep: python train.py -m hparams_search=optuna")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.validated = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self.validated:  # the score is an earlier epoch's
            return
        self.validated = False
        epoch, score = trainer.current_epoch, float(trainer.callback_metrics["val/score"])
        stops = trainer.is_global_zero and self.report(epoch, score) and epoch + 1 < (trainer.max_epochs or 0)
        if not trainer.strategy.broadcast(stops):
            return
        trainer.should_stop = True
        if trainer.is_global_zero:
            self.trial().set_user_attr(PRUNED, epoch + 1)
            note = f"pruned after epoch {epoch + 1} of {trainer.max_epochs}"
            (Path(self.run_dir) / NOTE).write_text(f"{note}\n", encoding="utf-8")
            log.info(f"{note}: val/score {score:.4f} is below that of other trials")

    def report(self, epoch: int, score: float) -> bool:
        """Whether the trial is to be ended."""
        trial = self.trial()
        if epoch not in trial.study.trials[self.number].intermediate_values:  # where a run goes on, it may be
            trial.report(score, epoch)
        return trial.should_prune()

    def trial(self) -> Trial:
        storage = open_storage(self.storage)
        study_id = storage.get_study_id_from_name(STUDY)
        number = storage.get_trial_id_from_study_id_trial_number(study_id, self.number)
        return Trial(open_study(self.storage, self.pruner), number)
