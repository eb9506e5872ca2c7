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
    not be read also has a row, which counts as a wrong answer.
    """

    full_state_update = False
    index: list[Tensor]
    logits: list[Tensor]
    label: list[Tensor]
    failed: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for state in ("index", "logits", "label", "failed"):
            self.add_state(state, [], dist_reduce_fx="cat")

    def update(self, index_B: Tensor, logits_BK: Tensor, label: Tensor, failed_B: Tensor) -> None:
        """Adds one row per video.

        Args:
            index_B: The row numbers of the videos in the manifest.
            logits_BK: The logits, averaged over the views of each video. The logits of several heads are
                concatenated.
            label: The class ids [B, heads], or for multi-label data, bools [B, K] that mark the classes of each
                video.
            failed_B: Whether each video could not be read.
        """
        self.index.append(index_B)
        self.logits.append(logits_BK.float())
        self.label.append(label)
        self.failed.append(failed_B)

    def compute(self) -> Rows:
        """Returns the columns index, label, logits, and failed, with one row per video in manifest order."""
        index, first = np.unique(dim_zero_cat(self.index).cpu().numpy(), return_index=True)
        columns = {name: dim_zero_cat(getattr(self, name)).cpu().numpy() for name in ("label", "logits", "failed")}
        return {"index": index, **{name: column[first] for name, column in columns.items()}}


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
    scores: dict[str, float] = {}
    losses = []
    # Each element of the five best tuples is among the five best classes of its head.
    joint_NC, joint_right_NC = torch.zeros(len(failed), 1), ~failed[:, None]
    for (name, classes), logits_NK, label_N in zip(heads.items(), logits, labels, strict=True):
        best = logits_NK.log_softmax(1).topk(min(5, classes), dim=1)
        right_NK = (best.indices == label_N[:, None]) & ~failed[:, None]
        scores |= top(right_NK, classes, f"{name}_" if name else "")
        losses.append(F.cross_entropy(logits_NK[~failed], label_N[~failed]))
        joint_NC = (joint_NC[:, :, None] + best.values[:, None]).flatten(1)
        joint_right_NC = (joint_right_NC[:, :, None] & right_NK[:, None]).flatten(1)
    if len(heads) > 1:
        five = joint_NC.topk(min(5, joint_NC.shape[1]), dim=1).indices
        scores |= top(joint_right_NC.gather(1, five), math.prod(heads.values()), "action_")
    scores["loss"] = torch.stack(losses).mean().item()
    return scores | {"n": len(failed), "failed": int(failed.sum())}


def top(right_NK: Tensor, classes: int, prefix: str) -> dict[str, float]:
    """Returns top1 and top5 from a table of whether each of the five best predictions, best first, is right."""
    scores = {f"{prefix}top1": right_NK[:, 0].double().mean().item()}
    if classes > 5:
        scores[f"{prefix}top5"] = right_NK.any(1).double().mean().item()
    return scores


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


def average_precision(score_N: np.ndarray[Any, Any], has_N: np.ndarray[Any, Any]) -> float:
    """Returns the average precision of one class as scikit-learn defines it.

    It is the precision at each distinct score, weighted by the gain in recall; equal scores are counted together.
    torchmetrics would first pass logits through a float32 sigmoid, which makes large logits equal.
    """
    order = np.argsort(-score_N, kind="stable")
    score_N, hits_N = score_N[order], has_N[order].cumsum()
    last = np.flatnonzero(np.append(score_N[1:] != score_N[:-1], True))
    if hits_N[-1] == 0:
        return math.nan
    return float((np.diff(hits_N[last], prepend=0) * hits_N[last] / (last + 1)).sum() / hits_N[-1])
