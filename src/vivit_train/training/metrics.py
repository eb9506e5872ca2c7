"""Scores of a whole evaluation: every video once, whatever the number of processes and views."""

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
    """Collects one row per video, from every process.

    A video that came twice (a sampler that pads the last batch of a process) counts once. A video that could
    not be read is a row too: a wrong answer.
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
        """`logits_BK` are averaged over the video's views, those of several heads side by side. `label` is the
        class in each head, [B, heads], or of each class whether the video has it, bool [B, K]."""
        self.index.append(index_B)
        self.logits.append(logits_BK.float())
        self.label.append(label)
        self.failed.append(failed_B)

    def compute(self) -> Rows:
        """The table behind the scores: index, label, logits, failed; a row per video, in the manifest's order."""
        index, first = np.unique(dim_zero_cat(self.index).cpu().numpy(), return_index=True)
        columns = {name: dim_zero_cat(getattr(self, name)).cpu().numpy() for name in ("label", "logits", "failed")}
        return {"index": index, **{name: column[first] for name, column in columns.items()}}


def score(rows: Rows, heads: Mapping[str, int]) -> dict[str, float]:
    """top1, top5 (where there are more than five classes), n, how many of them failed, and the others' loss.

    Several heads have a top1 and top5 each, "verb_top1", ..., and together those of the action, the tuple of their
    classes: top-1 is the tuple of the most probable classes, top-5 are the tuples with the largest products of
    probabilities (EPIC-Kitchens). The loss is the mean over the heads.

    Args:
        heads: their names and numbers of classes; "" is a single head's.
    """
    failed = torch.from_numpy(rows["failed"])
    logits = torch.from_numpy(rows["logits"]).split(list(heads.values()), dim=1)
    labels = torch.from_numpy(rows["label"]).unbind(1)
    scores: dict[str, float] = {}
    losses = []
    # of the five best tuples, each part is among its head's five best
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
    """top1 and top5 from whether each of the five best, best first, is right."""
    scores = {f"{prefix}top1": right_NK[:, 0].double().mean().item()}
    if classes > 5:
        scores[f"{prefix}top5"] = right_NK.any(1).double().mean().item()
    return scores


def score_multi_label(rows: Rows) -> dict[str, float]:
    """For any number of classes per video: map, over how many classes, n, how many failed, and the others' loss.

    map is the mean of the average precision of the classes that any video has. A video that failed comes after all
    others in each of them.
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
    """Of each class, [K]; NaN where no video has it."""
    # a logit that is not a number says as little as no logit
    ranked_NK = np.where(rows["failed"][:, None] | np.isnan(rows["logits"]), -np.inf, rows["logits"])
    return np.array(
        [average_precision(score_N, has_N) for score_N, has_N in zip(ranked_NK.T, rows["label"].T, strict=True)]
    )


def average_precision(score_N: np.ndarray[Any, Any], has_N: np.ndarray[Any, Any]) -> float:
    """The precision at each score that is reached, weighted by the recall gained there; equal scores are reached
    together (scikit-learn's definition). torchmetrics puts logits through a float32 sigmoid first, which makes
    large ones equal."""
    order = np.argsort(-score_N, kind="stable")
    score_N, hits_N = score_N[order], has_N[order].cumsum()
    last = np.flatnonzero(np.append(score_N[1:] != score_N[:-1], True))
    if hits_N[-1] == 0:
        return math.nan
    return float((np.diff(hits_N[last], prepend=0) * hits_N[last] / (last + 1)).sum() / hits_N[-1])
