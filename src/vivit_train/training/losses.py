"""The loss of one head. Any function or module with the same arguments can replace it: loss._target_=package.Loss.

Shape suffixes: B clips, K classes of the head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CrossEntropy(nn.Module):
    """The softmax cross-entropy, or, for multi-label data, the binary cross-entropy averaged over the classes.

    Args:
        label_smoothing: The share of the target that is spread over all classes, after mixing. For multi-label
            data, targets move toward 0.5 by this share.
        multi_label: Whether a clip may have any number of classes.
    """

    def __init__(self, label_smoothing: float = 0.0, multi_label: bool = False) -> None:
        super().__init__()
        self.label_smoothing, self.multi_label = label_smoothing, multi_label

    def forward(self, logits_BK: Tensor, target: Tensor) -> Tensor:
        """Returns the mean loss of a batch, a scalar.

        Args:
            logits_BK: The logits.
            target: The class ids, int64 [B], or the share of each class, float [B, K], after mixing. For
                multi-label data, 1 for the classes of a clip, else 0, float [B, K], or shares after mixing.
        """
        if not self.multi_label:
            return F.cross_entropy(logits_BK, target, label_smoothing=self.label_smoothing)
        # The dtype of the target determines the precision of the loss.
        target_BK = target.to(torch.promote_types(logits_BK.dtype, torch.float32))
        smooth_BK = target_BK * (1 - self.label_smoothing) + self.label_smoothing / 2
        return F.binary_cross_entropy_with_logits(logits_BK, smooth_BK)
