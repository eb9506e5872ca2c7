"""Metrics of a whole evaluation, in which every video counts once for any world size and number of views."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

Rows = dict[str, np.ndarray[Any, Any]]


class VideoTable(Metric):
    """A metric that collects one row per video from all ranks.

    A video that occurs twice, because a sampler padded the last batch of a rank, counts once. A video that could
    not be read also has a row, which counts as a wrong answer. Its logits are NaN: a model has no prediction for
    frames that it has not seen.
    """

    full_state_update = False
    index: list[Tensor]
    logits: list[Tensor]
    label: list[Tensor]
    failed: list[Tensor]
    right: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for state in ("index", "logits", "label", "failed", "right"):
            self.add_state(state, [], dist_reduce_fx="cat")

    def update(
        self,
        index_B: Tensor,
        logits_BK: Tensor,
        label: Tensor,
        failed_B: Tensor,
        right_BV: Tensor | None = None,
    ) -> None:
        """Adds one row per video.

        Args:
            index_B: The row numbers of the videos in the manifest.
            logits_BK: The logits, averaged over the views of each video. The logits of several heads are
                concatenated.
            label: The class ids [B, heads], or for multi-label data, bools [B, K] that mark the classes of each
                video.
            failed_B: Whether each video could not be read.
            right_BV: Whether the answer is right with 1, 2, ... V views, from `right_by_views`; None if not known.
        """
        self.index.append(index_B)
        self.logits.append(logits_BK.float().masked_fill(failed_B[:, None], math.nan))
        self.label.append(label)
        self.failed.append(failed_B)
        self.right.append(
            logits_BK.new_empty((len(index_B), 0), dtype=torch.bool) if right_BV is None else right_BV
        )

    def compute(self) -> Rows:
        """Returns the columns index, label, logits, failed and right, with one row per video in manifest order."""
        index, first = np.unique(dim_zero_cat(self.index).cpu().numpy(), return_index=True)
        names = ("label", "logits", "failed", "right")
        columns = {name: dim_zero_cat(getattr(self, name)).cpu().numpy() for name in names}
        return {"index": index, **{name: column[first] for name, column in columns.items()}}


def right_by_views(logits_BVK: Tensor, label: Tensor, index_B: Tensor, heads: Mapping[str, int]) -> Tensor:
    """Returns whether the answer is right in all heads if only 1, 2, ... V of the views are averaged, bool [B, V].

    A multi-label answer is right if the classes with a probability above 0.5 are exactly the true ones.

    The views of each video are taken in an order of its own, so that the mean over many videos estimates the
    accuracy with any views of that number.

    Args:
        logits_BVK: The logits of each view.
        label: The class ids [B, heads], or the targets of multi-label data, bool [B, K].
        index_B: The row numbers of the videos, which seed their orders.
        heads: The number of classes by head name.
    """
    views = logits_BVK.shape[1]
    orders = [np.random.default_rng(index).permutation(views) for index in index_B.tolist()]
    order_BV = torch.from_numpy(np.stack(orders)).to(logits_BVK.device)
    sums_BVK = logits_BVK.gather(1, order_BV[:, :, None].expand_as(logits_BVK)).cumsum(1)
    if label.dtype == torch.bool:
        return ((sums_BVK > 0) == label[:, None]).all(2)
    best = [part.argmax(2) for part in sums_BVK.split(list(heads.values()), dim=2)]
    return (torch.stack(best, dim=2) == label[:, None]).all(2)


def score(rows: Rows, heads: Mapping[str, int]) -> dict[str, float]:
    """Computes top1, top5 (with more than five classes), loss, n, and the number of failed videos.

    With several heads, each head has its own top1 and top5 ("verb_top1", ...). There are also scores of the
    action, the tuple of all classes: the top-1 is the tuple of the most probable classes, and the top-5 are the
    tuples with the largest products of probabilities (as in EPIC-Kitchens). The loss is the mean over the heads
    and excludes failed videos.

    Args:
        rows: The table of the videos, from `VideoTable.compute`.
        heads: The number of classes by head name. A single head has the name "".
    """
    failed = torch.from_numpy(rows["failed"])
    logits = torch.from_numpy(rows["logits"]).split(list(heads.values()), dim=1)
    labels = torch.from_numpy(rows["label"]).unbind(1)
    losses = [
        F.cross_entropy(logits_NK[~failed], label_N[~failed])
        for logits_NK, label_N in zip(logits, labels, strict=True)
    ]
    scores = {name: float(right_N.mean()) for name, right_N in right_answers(rows, heads).items()}
    return scores | {
        "loss": torch.stack(losses).mean().item(),
        "n": len(failed),
        "failed": int(failed.sum()),
    }


def right_answers(rows: Rows, heads: Mapping[str, int]) -> dict[str, np.ndarray[Any, np.dtype[np.bool]]]:
    """Returns whether each video is right, [N], by the name of the score; see `score`."""
    failed = torch.from_numpy(rows["failed"])
    logits = torch.from_numpy(rows["logits"]).split(list(heads.values()), dim=1)
    labels = torch.from_numpy(rows["label"]).unbind(1)
    right: dict[str, np.ndarray[Any, np.dtype[np.bool]]] = {}
    # Each element of the five best tuples is among the five best classes of its head.
    joint_NC, joint_right_NC = torch.zeros(len(failed), 1), ~failed[:, None]
    for (name, classes), logits_NK, label_N in zip(heads.items(), logits, labels, strict=True):
        best = logits_NK.log_softmax(1).topk(min(5, classes), dim=1)
        right_NK = (best.indices == label_N[:, None]) & ~failed[:, None]
        right |= top(right_NK, classes, f"{name}_" if name else "")
        joint_NC = (joint_NC[:, :, None] + best.values[:, None]).flatten(1)
        joint_right_NC = (joint_right_NC[:, :, None] & right_NK[:, None]).flatten(1)
    if len(heads) > 1:
        five = joint_NC.topk(min(5, joint_NC.shape[1]), dim=1).indices
        right |= top(joint_right_NC.gather(1, five), math.prod(heads.values()), "action_")
    return right


def top(right_NK: Tensor, classes: int, prefix: str) -> dict[str, np.ndarray[Any, np.dtype[np.bool]]]:
    """Returns top1 and top5, [N], from whether each of the five best predictions, best first, is right."""
    right = {f"{prefix}top1": right_NK[:, 0].numpy()}
    if classes > 5:
        right[f"{prefix}top5"] = right_NK.any(1).numpy()
    return right


def score_multi_label(rows: Rows) -> dict[str, float]:
    """Computes the multi-label scores: map, map_classes, loss, n, and the number of failed videos.

    The mAP is the mean average precision over the `map_classes` classes that occur in any video. A failed video
    ranks last in every class and is excluded from the loss.
    """
    failed, has_NK = rows["failed"], rows["label"]
    aps_K = average_precisions(rows)
    scored_K = ~np.isnan(aps_K)
    logits_NK, target_NK = (torch.from_numpy(column[~failed]) for column in (rows["logits"], has_NK))
    return {
        "map": float(aps_K[scored_K].mean()) if scored_K.any() else math.nan,
        "map_classes": int(scored_K.sum()),
        "loss": F.binary_cross_entropy_with_logits(logits_NK, target_NK.float()).item(),
        "n": len(failed),
        "failed": int(failed.sum()),
    }


def average_precisions(rows: Rows) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Returns the average precision of each class, [K]; NaN for a class that no video has."""
    # A NaN logit ranks last, just like a missing logit.
    ranked_NK = np.where(rows["failed"][:, None] | np.isnan(rows["logits"]), -np.inf, rows["logits"])
    return np.array(
        [average_precision(score_N, has_N) for score_N, has_N in zip(ranked_NK.T, rows["label"].T, strict=True)]
    )


def average_precision(
    score_N: np.ndarray[Any, Any], has_N: np.ndarray[Any, Any], weight_N: np.ndarray[Any, Any] | None = None
) -> float:
    """Returns the average precision of one class as scikit-learn defines it.

    It is the precision at each distinct score, weighted by the gain in recall; equal scores are counted together.
    torchmetrics would first pass logits through a float32 sigmoid, which makes large logits equal.

    Args:
        score_N: The scores.
        has_N: Whether each video has the class.
        weight_N: How often each video counts; None counts each once.
    """
    order = np.argsort(-score_N, kind="stable")
    score_N, has_N = score_N[order], has_N[order]
    weight_N = np.ones(len(order)) if weight_N is None else weight_N[order]
    hits_N, seen_N = (weight_N * has_N).cumsum(), weight_N.cumsum()
    last = np.flatnonzero(np.append(score_N[1:] != score_N[:-1], True))
    if hits_N[-1] == 0:
        return math.nan
    gains = np.diff(hits_N[last], prepend=0)
    return float((gains * hits_N[last] / np.maximum(seen_N[last], 1)).sum() / hits_N[-1])
