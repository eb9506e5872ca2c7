"""What a model answers for each video of a split, and predictions.csv."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vivit_train.data.annotations.table import SEPARATOR
from vivit_train.training.metrics import Rows
from vivit_train.utils.text import csv_cell

Floats = NDArray[np.float64]
Bools = NDArray[np.bool]
NO_ANSWER = -1  # the prediction for a video that cannot be read
TOP = 5


@dataclass(frozen=True, eq=False)
class Answers:
    """The labels and the answers of one head.

    Attributes:
        head: The name of the head; "" for a single head.
        classes: The class names.
        failed: Whether each video could not be read, so that there is no answer, [N].
        has: Whether each video has each class, [N, K]: exactly one, or any number for multi-label data.
        probability: The probability of each class, [N, K]: the softmax of the logits, or their sigmoid for
            multi-label data. A video without an answer has 0, so that it ranks last in every class.
        multi_label: Whether a video may have any number of classes.
    """

    head: str
    classes: Sequence[str]
    failed: Bools
    has: Bools
    probability: Floats
    multi_label: bool

    @property
    def prefix(self) -> str:
        """The start of the names of this head's scores and columns: "verb_", or "" for a single head."""
        return f"{self.head}_" if self.head else ""

    @property
    def labels(self) -> NDArray[np.int64]:
        """The class id of each video, [N]; not for multi-label data."""
        return self.has.argmax(1)

    @property
    def predictions(self) -> NDArray[np.int64]:
        """The id of the most probable class of each video, [N], or `NO_ANSWER`."""
        return np.where(self.failed, NO_ANSWER, self.probability.argmax(1))

    @property
    def predicted(self) -> Bools:
        """The predicted classes, [N, K]: the most probable one, or for multi-label data, those above 0.5."""
        if self.multi_label:
            return self.probability > 0.5
        return self.predictions[:, None] == np.arange(len(self.classes))

    @property
    def losses(self) -> Floats:
        """The cross-entropy of each video, [N], for multi-label data the mean over classes; infinite if failed."""
        tiny = np.finfo(float).tiny
        p_NK = np.maximum(np.where(self.has, self.probability, 1 - self.probability), tiny)
        loss_N = -np.log(p_NK).mean(1) if self.multi_label else -np.log(p_NK[self.has])
        return np.where(self.failed, np.inf, loss_N)

    def best(self, row: int, count: int = TOP) -> list[tuple[int, float]]:
        """Returns the most probable classes of a video with their probabilities; nothing without an answer."""
        if self.failed[row]:
            return []
        order = np.argsort(-self.probability[row], kind="stable")[:count]
        return [(int(k), float(self.probability[row, k])) for k in order]

    def names(self, chosen_NK: Bools) -> list[str]:
        """Returns the chosen class names of each video; several are separated by a semicolon."""
        return [SEPARATOR.join(compress(self.classes, chosen_K)) for chosen_K in chosen_NK]


def answers_of(rows: Rows, classes: Mapping[str, Sequence[str]]) -> list[Answers]:
    """Returns the answers of each head.

    Args:
        rows: The table of the videos, from `VideoTable.compute`.
        classes: The class names by head.
    """
    failed_N, ends = rows["failed"], np.cumsum([len(names) for names in classes.values()])[:-1]
    # A model that diverged has NaN logits. They mean nothing, like zeros.
    logits_NK = np.nan_to_num(rows["logits"].astype(float), nan=0.0)
    multi_label = rows["label"].dtype == np.bool
    found = []
    for i, (head, names) in enumerate(classes.items()):
        part_NK = np.split(logits_NK, ends, axis=1)[i]
        if multi_label:
            has_NK, probability_NK = rows["label"], 1 / (1 + np.exp(-np.clip(part_NK, -700, 700)))
        else:
            has_NK = rows["label"][:, i, None] == np.arange(len(names))
            powers_NK = np.exp(part_NK - part_NK.max(1, keepdims=True))
            probability_NK = powers_NK / powers_NK.sum(1, keepdims=True)
        probability_NK = np.where(failed_N[:, None], 0.0, probability_NK)
        found.append(Answers(head, names, failed_N, has_NK, probability_NK, multi_label))
    return found


def hardest_first(heads: Sequence[Answers]) -> NDArray[np.int64]:
    """Returns the rows by their loss over all heads, largest first: the unreadable, then the most wrong."""
    return np.argsort(-np.sum([head.losses for head in heads], axis=0), kind="stable")


def write_predictions(
    path: Path, rows: Rows, ids: Sequence[str], heads: Sequence[Answers], by_difficulty: bool = False
) -> None:
    """Writes predictions.csv with one row per video.

    The columns are the id; for each head the true class, the predicted class and, unless the data is multi-label,
    the probabilities of both and the margin between the two most probable classes; the five most probable
    classes; whether the video failed; and the logit of each class. A failed video has no values. Names are escaped
    with `csv_cell`. With several heads, the columns include the head: "verb_label", "logit:verb:take".

    Args:
        path: The output file.
        rows: The table of the videos, from `VideoTable.compute`.
        ids: The name of each row's video.
        heads: The answers, from `answers_of`.
        by_difficulty: Whether the hardest video comes first, instead of the first one of the split.
    """
    columns: dict[str, Sequence[Any]] = {"id": ids}
    for head in heads:
        columns |= {f"{head.prefix}{name}": column for name, column in readable_columns(head).items()}
    columns["failed"] = rows["failed"].astype(int).tolist()
    names = [
        f"logit:{head.head}:{name}" if head.head else f"logit:{name}" for head in heads for name in head.classes
    ]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(map(csv_cell, [*columns, *names]))
        for row in hardest_first(heads) if by_difficulty else range(len(ids)):
            logits = ("" if rows["failed"][row] else f"{value:.6g}" for value in rows["logits"][row])
            writer.writerow([*(csv_cell(column[row]) for column in columns.values()), *logits])


def readable_columns(head: Answers) -> dict[str, list[str]]:
    """Returns the columns of predictions.csv that belong to one head, without its logits."""
    columns = {"label": head.names(head.has), "prediction": head.names(head.predicted)}
    if not head.multi_label:
        two_NK = np.sort(head.probability, axis=1)[:, -2:]
        margin_N = two_NK[:, -1] - two_NK[:, 0] if two_NK.shape[1] > 1 else two_NK[:, -1]
        columns["probability"] = shown(two_NK[:, -1], head.failed)
        columns["label_probability"] = shown(head.probability[head.has], head.failed)
        columns["margin"] = shown(margin_N, head.failed)
    best = (head.best(row) for row in range(len(head.failed)))
    columns[f"top{TOP}"] = ["; ".join(f"{head.classes[k]} {p:.3f}" for k, p in five) for five in best]
    return columns


def shown(values_N: Floats, failed_N: Bools) -> list[str]:
    """Returns numbers as text, empty for failed videos."""
    return ["" if failed else f"{value:.4f}" for value, failed in zip(values_N, failed_N, strict=True)]


def chance(label: NDArray[Any]) -> float:
    """Returns the score of a model that knows only how frequent the classes are.

    For class ids [N, heads], it is the top-1 accuracy of always answering the most frequent combination; for
    multi-label targets, bool [N, K], the expected mAP of a random order. Without labels, it is NaN.
    """
    if not label.size:
        return float("nan")
    if label.dtype == np.bool:
        share_K = label.mean(0)
        return float(share_K[share_K > 0].mean()) if share_K.any() else float("nan")
    _, counts = np.unique(label, axis=0, return_counts=True)
    return float(counts.max() / len(label))
