"""Scores by class, 95 % intervals and calibration: what predictions say beyond top-1."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics.functional.classification import binary_auroc

from vivit_train.training.answers import Answers, Bools, Floats
from vivit_train.training.metrics import Rows, average_precision, average_precisions, right_answers
from vivit_train.utils.intervals import bootstrap, wilson

Interval = tuple[float, float]
BINS = 15  # of the calibration error, as in Guo et al., "On Calibration of Modern Neural Networks", 2017
MACRO = ("recall", "precision", "f1", "auc")  # the means over the classes that occur


class ClassScores(NamedTuple):
    """Scores by class, each [K]. A score is NaN where it is undefined.

    Attributes:
        n: The number of videos of the class.
        right: The number of them that are predicted correctly.
        predicted: The number of videos that are predicted as the class.
        recall: The share right / n.
        low, high: The 95 % interval of the recall (Wilson).
        precision: The share right / predicted.
        f1: The harmonic mean of recall and precision.
        auc: The area under the ROC curve of the class against the rest. Unreadable videos rank last.
        ap: The average precision.
    """

    n: NDArray[np.int64]
    right: NDArray[np.int64]
    predicted: NDArray[np.int64]
    recall: Floats
    low: Floats
    high: Floats
    precision: Floats
    f1: Floats
    auc: Floats
    ap: Floats

    def macro(self) -> dict[str, float]:
        """Returns the mean of each score in `MACRO` over the classes that occur, where it is defined.

        The precision of a class that is never predicted counts as 0, as in scikit-learn.
        """
        scores = self._replace(precision=np.where(self.predicted == 0, 0.0, self.precision))
        return {name: mean(getattr(scores, name)[self.n > 0]) for name in MACRO}


def class_scores(head: Answers) -> ClassScores:
    """Returns the scores of each class of a head; a video that could not be read counts as missed."""
    has_NK, predicted_NK, p_NK = head.has, head.predicted, head.probability
    n, right, predicted = has_NK.sum(0), (has_NK & predicted_NK).sum(0), predicted_NK.sum(0)
    recall, precision, f1 = rates(n, right, predicted)
    ap = np.array([average_precision(p_N, has_N) for p_N, has_N in zip(p_NK.T, has_NK.T, strict=True)])
    return ClassScores(n, right, predicted, recall, *wilson(right, n), precision, f1, auc(p_NK, has_NK), ap)


def rates(n: NDArray[Any], right: NDArray[Any], predicted: NDArray[Any]) -> tuple[Floats, Floats, Floats]:
    """Returns recall, precision and F1 from the counts of `ClassScores`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return right / n, right / predicted, np.where(n > 0, 2 * right / (n + predicted), np.nan)


def auc(p_NK: Floats, has_NK: Bools) -> Floats:
    """Returns the area under the ROC curve of each class, [K]; NaN for a class that all videos or none have."""
    pairs = zip(torch.from_numpy(p_NK).T, torch.from_numpy(has_NK).T, strict=True)
    return np.array(
        [math.nan if has_N.all() or not has_N.any() else float(binary_auroc(p_N, has_N)) for p_N, has_N in pairs]
    )


def mean(values: Floats) -> float:
    """Returns the mean of the values that are not NaN; NaN if there are none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else math.nan


def top_intervals(rows: Rows, heads: Mapping[str, int], group_N: NDArray[Any]) -> dict[str, Interval]:
    """Returns the intervals of top-1 and top-5 by the name of the score.

    Each is Wilson's, or where several rows belong to one video, that of the bootstrap over videos.

    Args:
        rows: The table of the videos, from `VideoTable.compute`.
        heads: The number of classes by head name.
        group_N: The video of each row.
    """
    found = {}
    independent = len(np.unique(group_N)) == len(group_N)
    for name, right_N in right_answers(rows, heads).items():
        if independent:
            low, high = wilson(right_N.sum(), len(right_N))
        else:
            low, high = bootstrap(lambda w_N, r_N=right_N: w_N[r_N].sum() / w_N.sum(), group_N)  # type: ignore[misc]
        found[name] = (float(low), float(high))
    return found


def macro_intervals(head: Answers, group_N: NDArray[Any]) -> dict[str, Interval]:
    """Returns the bootstrap intervals of the mean recall, precision and F1 of a head."""
    has_NK, predicted_NK = head.has.astype(np.float32), head.predicted.astype(np.float32)
    right_NK, occurs_K = has_NK * predicted_NK, head.has.any(0)

    def macro(weight_N: NDArray[np.int64]) -> list[float]:
        w_N = weight_N.astype(np.float32)
        recall_K, precision_K, f1_K = rates(w_N @ has_NK, w_N @ right_NK, w_N @ predicted_NK)
        return [mean(score_K[occurs_K]) for score_K in (recall_K, np.nan_to_num(precision_K), f1_K)]

    ends = bootstrap(macro, group_N, 3 * has_NK.size // 8)
    return {name: (float(low), float(high)) for name, low, high in zip(MACRO, *ends, strict=False)}


def map_interval(rows: Rows, group_N: NDArray[Any]) -> Interval:
    """Returns the bootstrap interval of the mAP."""
    defined_K = ~np.isnan(average_precisions(rows))
    if not defined_K.any():
        return math.nan, math.nan
    ranked_NK = np.where(rows["failed"][:, None] | np.isnan(rows["logits"]), -np.inf, rows["logits"])
    # Scores that are sorted once are sorted faster in each resample.
    orders = [np.argsort(-ranked_NK[:, k], kind="stable") for k in np.flatnonzero(defined_K)]
    columns = [
        (order, ranked_NK[order, k], rows["label"][order, k])
        for order, k in zip(orders, np.flatnonzero(defined_K), strict=True)
    ]

    def mean_ap(weight_N: NDArray[np.int64]) -> float:
        return mean(
            np.array([average_precision(score_N, has_N, weight_N[order]) for order, score_N, has_N in columns])
        )

    low, high = bootstrap(mean_ap, group_N, 10 * ranked_NK.size)
    return float(low), float(high)


class Calibration(NamedTuple):
    """How often answers of a given confidence are right.

    Attributes:
        answers: The number of answers in each bin of equal width, [BINS].
        confidence: Their mean confidence; NaN for an empty bin.
        accuracy: The share of them that is right.
        low, high: The 95 % interval of the accuracy (Wilson).
        error: The expected calibration error: the mean distance of confidence and accuracy over all answers.
    """

    answers: NDArray[np.int64]
    confidence: Floats
    accuracy: Floats
    low: Floats
    high: Floats
    error: float


def calibration(head: Answers) -> Calibration:
    """Returns the calibration of a head.

    It is that of the most probable class of each readable video, or for multi-label data, of all classes.
    """
    p_NK = head.probability[~head.failed]
    if head.multi_label:
        confidence, right = p_NK.ravel(), head.has[~head.failed].ravel()
    else:
        confidence = p_NK.max(1, initial=0)
        right = (head.predictions == head.labels)[~head.failed]
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    count, hits, total = (np.bincount(bins, weights, BINS) for weights in (None, right, confidence))
    with np.errstate(invalid="ignore"):
        mean_confidence, accuracy = total / count, hits / count
    error = float(np.abs(total - hits).sum() / count.sum()) if count.sum() else math.nan
    return Calibration(count, mean_confidence, accuracy, *wilson(hits, count), error)


def views_accuracy(rows: Rows) -> tuple[Floats, Floats, Floats]:
    """Returns the share of right videos with 1, 2, ... views and its interval (Wilson), each [V].

    V is 0 if it is not known.
    """
    right_NV = rows["right"]
    return right_NV.mean(0), *wilson(right_NV.sum(0), len(right_NV))


def confused(head: Answers, most: int) -> Sequence[tuple[int, int, int]]:
    """Returns the pairs of classes that are confused most often: (count, true class, predicted class)."""
    wrong_N = (head.predictions != head.labels) & ~head.failed
    pairs, counts = np.unique(
        np.stack([head.labels[wrong_N], head.predictions[wrong_N]], axis=1), axis=0, return_counts=True
    )
    order = np.argsort(-counts, kind="stable")[:most]
    return [(int(counts[i]), int(pairs[i, 0]), int(pairs[i, 1])) for i in order]
