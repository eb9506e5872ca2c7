"""Prune the unpromising trials of a hyperparameter search."""

import logging
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Callback
from optuna.pruners import BasePruner
from optuna.trial import Trial

from vivit_train.tools.optuna_sweeper import PRUNED, STUDY, open_storage, open_study
from vivit_train.tools.sweep import NOTE
from vivit_train.utils.errors import UserError

log = logging.getLogger(__name__)


class Pruning(Callback):
    """Reports val/score to Optuna after each epoch and stops training if the pruner decides so.

    A pruned run ends like any other run: with the score of its best checkpoint.

    Args:
        storage: File of the search.
        trial: Number of this trial in the search.
        pruner: Pruner of Optuna.
        run_dir: Folder of the run, where the callback writes a note for the table of the sweep.

    Raises:
        UserError: The run is not a trial of a search. This is checked when training starts.
    """

    def __init__(self, storage: str, trial: int, pruner: BasePruner, run_dir: str) -> None:
        self.storage, self.number, self.pruner, self.run_dir = storage, trial, pruner, run_dir
        self.validated = False

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not Path(self.storage).is_file():
            raise UserError("hparams_search=optuna needs a multirun: python train.py -m hparams_search=optuna")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.validated = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self.validated:  # Without validation in this epoch, the score is from an earlier one.
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
            log.info(f"{note}: val/score {score:.4f} is lower than in other trials")

    def report(self, epoch: int, score: float) -> bool:
        """Report the score of an epoch and return whether to prune the trial."""
        trial = self.trial()
        # A resumed run may repeat an epoch whose score it has already reported.
        if epoch not in trial.study.trials[self.number].intermediate_values:
            trial.report(score, epoch)
        return trial.should_prune()

    def trial(self) -> Trial:
        storage = open_storage(self.storage)
        study_id = storage.get_study_id_from_name(STUDY)
        number = storage.get_trial_id_from_study_id_trial_number(study_id, self.number)
        return Trial(open_study(self.storage, self.pruner), number)
