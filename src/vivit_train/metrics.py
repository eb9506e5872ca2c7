"""Scores of a whole evaluation: every video once, whatever the number of processes and views."""

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

    def update(self, index_B: Tensor, logits_BK: Tensor, label_B: Tensor, failed_B: Tensor) -> None:
        """`logits_BK` are averaged over the video's views."""
        self.index.append(index_B)
        self.logits.append(logits_BK.float())
        self.label.append(label_B)
        self.failed.append(failed_B)

    def compute(self) -> Rows:
        """The table behind the scores: index, label, logits, failed; a row per video, in the manifest's order."""
        index, first = np.unique(dim_zero_cat(self.index).cpu().numpy(), return_index=True)
        columns = {name: dim_zero_cat(getattr(self, name)).cpu().numpy() for name in ("label", "logits", "failed")}
        return {"index": index, **{name: column[first] for name, column in columns.items()}}


def score(rows: Rows) -> dict[str, float]:
    """top1, top5 (where there are more than five classes), n, how many of them failed, and the others' loss."""
    logits, label, failed = (torch.from_numpy(rows[name]) for name in ("logits", "label", "failed"))
    right_NK = logits.topk(min(5, logits.shape[1]), dim=1).indices == label[:, None]
    right_NK &= ~failed[:, None]
    scores = {"top1": right_NK[:, 0].double().mean().item()}
    if logits.shape[1] > 5:
        scores["top5"] = right_NK.any(1).double().mean().item()
    scores["loss"] = F.cross_entropy(logits[~failed], label[~failed]).item()
    return scores | {"n": len(failed), "failed": int(failed.sum())}
