"""Says when a training run does not learn, and what to try."""

import logging
import math
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback

from vivit_train.training.metrics import Rows
from vivit_train.training.module import VideoClassifier
from vivit_train.utils.arguments import conforms
from vivit_train.utils.conf import has_pretrained_start
from vivit_train.utils.text import plural, printable

log = logging.getLogger(__name__)

CHANCE = 0.02  # A loss within this share of ln(classes) is that of a guess.
ONE_CLASS = 0.95  # A class with this share of the predictions takes all of them,
AS_LABELED = 0.7  # unless it has this share of the labels.
FALLS = 0.9  # The training loss falls if it is below this share of its earlier value.


class Advice(Callback):
    """A callback that warns, once each, when training does not learn.

    It warns if the training loss stays at ln(classes), which is the loss of a guess; if the model predicts one
    class for nearly all validation clips; and if the training loss falls while the validation score does not rise.

    Args:
        epochs: The number of epochs in a row in which this must be so.
    """

    def __init__(self, epochs: int = 5) -> None:
        self.epochs = epochs
        self.history: list[tuple[float, float, str]] = []
        self.given: list[str] = []
        self.last: tuple[float, str] | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"history": [list(row) for row in self.history], "given": self.given}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        history, given = state_dict.get("history"), state_dict.get("given")
        if conforms(history, list[list[Any]]) and conforms(given, list[str]):
            self.history, self.given = [(row[0], row[1], row[2]) for row in history or []], list(given or [])

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, VideoClassifier)
        if not trainer.sanity_checking:
            score = float(trainer.callback_metrics["val/score"])
            one_class = "" if pl_module.multi_label else dominant(pl_module.val_rows, pl_module)
            self.last = score, one_class

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.last is None:
            return
        assert isinstance(pl_module, VideoClassifier)
        self.history.append((float(trainer.callback_metrics["train/loss_epoch"]), *self.last))
        self.last = None
        if len(self.history) < self.epochs or not trainer.is_global_zero:
            return
        for kind, text in self.findings(pl_module).items():
            if kind not in self.given:
                self.given.append(kind)
                log.warning(f"advice: {text}")

    def findings(self, task: VideoClassifier) -> dict[str, str]:
        """Returns the text of each warning that the last epochs call for, by its kind."""
        texts = {
            "chance": self.stays_at_chance(task),
            "one class": self.predicts_one_class(),
            "overfitting": self.overfits(task),
        }
        return {kind: text for kind, text in texts.items() if text}

    @property
    def span(self) -> str:
        return f"the last {plural(self.epochs, 'validated epoch')}"

    def stays_at_chance(self, task: VideoClassifier) -> str:
        guess = loss_of_guess(task)
        if not guess or any(abs(loss / guess - 1) > CHANCE for loss, *_ in self.history[-self.epochs :]):
            return ""
        name = "ln(2)" if task.multi_label else "ln(classes)"
        start = "" if has_start(task) else "init=imagenet, "
        return (
            f"the training loss has stayed at {name} = {guess:.2f} in {self.span}, as if the model guessed. Try "
            f"another optimizer.lr (a third, or three times as much), {start}or debug=overfit, which tests "
            "whether the model can memorize two clips"
        )

    def predicts_one_class(self) -> str:
        names = [one_class for *_, one_class in self.history[-self.epochs :]]
        if not all(names):
            return ""
        name = printable(names[-1]) if len(set(names)) == 1 else f"one class, now {printable(names[-1])},"
        return (
            f"in {self.span} the model predicts {name} for nearly all validation clips. Try a lower "
            "optimizer.lr, loss.class_weights=balanced, and `vivit doctor` for the labels"
        )

    def overfits(self, task: VideoClassifier) -> str:
        losses = [loss for loss, *_ in self.history[-self.epochs :]]
        if losses[-1] >= loss_of_guess(task):  # What falls from there is not memorized.
            return ""
        best = max(score for _, score, _ in self.history)
        earlier = max((score for _, score, _ in self.history[: -self.epochs]), default=-math.inf)
        if earlier < best or losses[-1] > FALLS * losses[0]:
            return ""
        *others, last = remedies(task)
        tried = f"{', '.join(others)}, or {last}" if others else last
        return (
            f"the training loss fell from {losses[0]:.3g} to {losses[-1]:.3g} in {self.span}, but val/score stays "
            f"below its best, {best:.3f}. The model memorizes the training clips: try {tried}"
        )


def remedies(task: VideoClassifier) -> list[str]:
    """Returns what can reduce overfitting and the run does not do yet."""
    config = task.metadata.get("config", {})
    found = [] if has_start(task) else ["init=imagenet"]
    if config.get("train") == "head":
        found.append("`vivit probe` (it chooses the weight decay of such a head)")
    elif not config.get("mixup") and not config.get("cache"):
        found.append("mixup=0.8")
    if config.get("patience") is None:
        found.append("patience=5 (ends training early)")
    return [*found, "more training clips"]


def has_start(task: VideoClassifier) -> bool:
    """Returns whether the model started from pretrained weights."""
    return has_pretrained_start(task.metadata.get("config", {}).get("init") or {})


def loss_of_guess(task: VideoClassifier) -> float:
    """Returns the cross-entropy of a model that gives all classes the same probability."""
    return float(np.log([2] if task.multi_label else list(task.heads.values())).mean())


def dominant(rows: Rows, task: VideoClassifier) -> str:
    """Returns the class that nearly all predictions name though the labels do not, or "" if there is none."""
    logits = np.split(rows["logits"], np.cumsum(list(task.heads.values()))[:-1], axis=1)
    for column, (head, logits_NK) in enumerate(zip(task.heads, logits, strict=True)):
        K = logits_NK.shape[1]
        predicted = np.bincount(logits_NK.argmax(1), minlength=K) / len(logits_NK)
        labels = np.bincount(rows["label"][:, column], minlength=K) / len(logits_NK)
        most = int(predicted.argmax())
        if predicted[most] >= ONE_CLASS and labels[most] < AS_LABELED:
            return " ".join(filter(None, (head, task.classes[head][most])))
    return ""
