"""The losses of one head. Functions and modules with the same arguments replace them: loss._target_=package.Loss.

A loss with an argument `multi_label` or `class_counts` is given it. Weights have a mean of 1 over the training
clips, so the mean loss of a batch does not depend on how the batch is split.

Shape suffixes: B clips, K classes of the head.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivit_train.utils.errors import UserError

ClassWeights = Literal["balanced"] | Sequence[float] | None


class CrossEntropy(nn.Module):
    """The softmax cross-entropy, or, for multi-label data, the binary cross-entropy averaged over the classes.

    Args:
        label_smoothing: The share of the target that is spread over all classes, after mixing. For multi-label
            data, targets move toward 0.5 by this share.
        class_weights: "balanced" gives the clips of each class the same total weight; a list has one weight per
            class. None weights all clips alike.
        multi_label: Whether a clip may have any number of classes.
        class_counts: The number of training clips of each class, [K].

    Raises:
        UserError: The weights do not fit the classes.
    """

    weight: Tensor | None

    def __init__(
        self,
        label_smoothing: float = 0.0,
        class_weights: ClassWeights = None,
        multi_label: bool = False,
        class_counts: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.label_smoothing, self.multi_label = label_smoothing, multi_label
        if multi_label and class_weights is not None:
            raise UserError("loss.class_weights needs data with one class per clip")
        weight = None if class_weights is None else weights_of(class_weights, class_counts)
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, logits_BK: Tensor, target: Tensor) -> Tensor:
        """Returns the mean loss of a batch, a scalar.

        Args:
            logits_BK: The logits.
            target: The class ids, int64 [B], or the share of each class, float [B, K], after mixing. For
                multi-label data, 1 for the classes of a clip, else 0, float [B, K], or shares after mixing.
        """
        if self.weight is not None:
            smoothing = self.label_smoothing
            return F.cross_entropy(
                logits_BK, target, self.weight, label_smoothing=smoothing, reduction="none"
            ).mean()
        if not self.multi_label:
            return F.cross_entropy(logits_BK, target, label_smoothing=self.label_smoothing)
        # The dtype of the target determines the precision of the loss.
        target_BK = target.to(torch.promote_types(logits_BK.dtype, torch.float32))
        smooth_BK = target_BK * (1 - self.label_smoothing) + self.label_smoothing / 2
        return F.binary_cross_entropy_with_logits(logits_BK, smooth_BK)


class Focal(CrossEntropy):
    """The focal loss (arXiv 1708.02002): clips that are classified well already count less.

    The cross-entropy of each class is multiplied by (1 - p)^gamma, where p is its predicted probability. For
    multi-label data, p is the predicted probability of the class being present or absent, as labeled.

    Args:
        gamma: How fast the weight of a clip falls with its probability; 0 is the cross-entropy.
        label_smoothing: See `CrossEntropy`.
        class_weights: See `CrossEntropy`.
        multi_label: See `CrossEntropy`.
        class_counts: See `CrossEntropy`.
    """

    def __init__(
        self,
        gamma: float = 2.0,
        label_smoothing: float = 0.0,
        class_weights: ClassWeights = None,
        multi_label: bool = False,
        class_counts: Sequence[int] = (),
    ) -> None:
        super().__init__(label_smoothing, class_weights, multi_label, class_counts)
        self.gamma = gamma

    def forward(self, logits_BK: Tensor, target: Tensor) -> Tensor:
        share_BK = shares(target, logits_BK)
        if self.multi_label:
            share_BK = share_BK * (1 - self.label_smoothing) + self.label_smoothing / 2
            present_BK, absent_BK = F.logsigmoid(logits_BK), F.logsigmoid(-logits_BK)
            loss_BK = share_BK * present_BK * absent_BK.exp() ** self.gamma
            loss_BK = loss_BK + (1 - share_BK) * absent_BK * present_BK.exp() ** self.gamma
            return -loss_BK.mean()
        share_BK = share_BK * (1 - self.label_smoothing) + self.label_smoothing / logits_BK.shape[1]
        log_p_BK = logits_BK.log_softmax(1)
        loss_BK = -share_BK * log_p_BK * (1 - log_p_BK.exp()) ** self.gamma
        return (loss_BK if self.weight is None else loss_BK * self.weight).sum(1).mean()


class LogitAdjusted(CrossEntropy):
    """The cross-entropy with adjusted logits (arXiv 2007.07314), for data with frequent and rare classes.

    In training, the log of each class's frequency is added to its logit. Without it, the logits then rank the
    classes as if all were equally frequent.

    Args:
        tau: The factor of the log frequencies; 0 is the cross-entropy.
        label_smoothing: See `CrossEntropy`.
        multi_label: Must be false.
        class_counts: The number of training clips of each class, [K].

    Raises:
        UserError: The data is multi-label.
    """

    log_prior: Tensor

    def __init__(
        self,
        tau: float = 1.0,
        label_smoothing: float = 0.0,
        multi_label: bool = False,
        class_counts: Sequence[int] = (),
    ) -> None:
        super().__init__(label_smoothing)
        if multi_label:
            raise UserError("loss=logit_adjusted needs data with one class per clip")
        counts_K = torch.tensor(class_counts, dtype=torch.float32).clamp(min=1)
        self.register_buffer("log_prior", tau * (counts_K / counts_K.sum()).log(), persistent=False)

    def forward(self, logits_BK: Tensor, target: Tensor) -> Tensor:
        return super().forward(logits_BK + self.log_prior, target)


def weights_of(class_weights: ClassWeights, class_counts: Sequence[int]) -> Tensor:
    """Returns the weight of each class, [K], with a mean of 1 over the training clips.

    Raises:
        UserError: The list does not have one weight per class from 0 on, or all that count are 0.
    """
    counts_K = torch.tensor(class_counts, dtype=torch.float32)
    if class_weights == "balanced":
        weight_K = 1 / counts_K.clamp(min=1)
    else:
        weight_K = torch.tensor(class_weights, dtype=torch.float32)
        if len(weight_K) != len(counts_K) or not (weight_K.isfinite() & (weight_K >= 0)).all():
            raise UserError(
                f"loss.class_weights={class_weights}: must be balanced or {len(counts_K)} numbers, one per class"
            )
        if not (weight_K * counts_K).any():
            raise UserError(
                f"loss.class_weights={class_weights}: all are 0 for the classes that have training clips, so "
                "nothing would be learned: raise one, or set loss.class_weights=balanced or null"
            )
    total = (weight_K * counts_K).sum()
    return weight_K * counts_K.sum() / total if total > 0 else torch.ones_like(counts_K)


def shares(target: Tensor, logits_BK: Tensor) -> Tensor:
    """Returns the share of each class in a target, [B, K], in at least float32."""
    dtype = torch.promote_types(logits_BK.dtype, torch.float32)
    return F.one_hot(target, logits_BK.shape[1]).to(dtype) if target.dtype == torch.int64 else target.to(dtype)
