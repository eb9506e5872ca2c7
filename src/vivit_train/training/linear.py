"""Logistic regression for many weight decays and folds at once.

Shape suffixes: N clips, E features, r directions of the features, K classes, P problems.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vivit_train.training.folds import held_out_logits

MOST_DIRECTIONS = 1000  # More clips and features than this are reduced to their directions of largest variance.
ITERATIONS = 100


@dataclass(frozen=True)
class Standardized:
    """Features with mean 0 and standard deviation 1 / sqrt(E), in an orthogonal basis.

    A regression with weight decay has the same solution in this basis as with the features themselves, because
    its weights are a combination of the clips.

    Attributes:
        x: The features, [N, r].
        basis: The basis, with the standardization, [E, r].
        mean: The mean of the features, [E].
    """

    x: Tensor
    basis: Tensor
    mean: Tensor

    @classmethod
    def of(cls, x_NE: Tensor) -> "Standardized":
        """Standardizes features."""
        mean_E, std_E = x_NE.mean(0), x_NE.std(0, correction=0)
        constant_E = std_E <= 1e-6 * (1 + mean_E.abs())
        scale_E = torch.where(constant_E, 0.0, 1 / std_E.clamp(min=1e-12)) * x_NE.shape[1] ** -0.5
        scaled_NE = (x_NE - mean_E) * scale_E
        if min(x_NE.shape) > MOST_DIRECTIONS:
            _, _, basis_Er = torch.svd_lowrank(scaled_NE, MOST_DIRECTIONS, niter=2)
        else:
            _, _, basis_rE = torch.linalg.svd(scaled_NE, full_matrices=False)
            basis_Er = basis_rE.T
        return cls((scaled_NE @ basis_Er).double(), scale_E[:, None] * basis_Er, mean_E)

    def head(self, weight_rK: Tensor, bias_K: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the weight [K, E] and the bias [K] of a linear layer on the features as they were."""
        weight_EK = self.basis.double() @ weight_rK
        return weight_EK.T.float(), (bias_K - self.mean.double() @ weight_EK).float()


def fit(
    x_Nr: Tensor, label_N: Tensor, num_classes: int, decay_P: Sequence[float], weight_PN: Tensor
) -> tuple[Tensor, Tensor]:
    """Minimizes, for each problem, the mean cross-entropy + decay / 2 * ||weights||^2 with L-BFGS.

    The sum of all problems is minimized, which has the same solution because they share no weights.

    Args:
        x_Nr: The features.
        label_N: The class ids.
        num_classes: The number of classes.
        decay_P: The weight decay of each problem.
        weight_PN: The weight of each clip in each problem: 0 for the clips of a fold that are held out.

    Returns:
        The weights [P, r, K] and the biases [P, K].
    """
    problems = len(decay_P)
    weight = x_Nr.new_zeros(problems, x_Nr.shape[1], num_classes, requires_grad=True)
    bias = x_Nr.new_zeros(problems, 1, num_classes, requires_grad=True)
    share_PN = weight_PN.to(x_Nr.dtype) / weight_PN.sum(1, keepdim=True)
    decay = torch.tensor(decay_P, dtype=x_Nr.dtype, device=x_Nr.device)
    label_PN = label_N.expand(problems, -1)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=ITERATIONS, history_size=20, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = x_Nr @ weight + bias
        losses_PN = F.cross_entropy(logits.flatten(0, 1), label_PN.flatten(), reduction="none").view_as(share_PN)
        loss = (losses_PN * share_PN).sum() + (weight.square().sum((1, 2)) * decay).sum() / 2
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach(), bias.detach()[:, 0]


def cross_validate(
    x_Nr: Tensor, label_N: Tensor, num_classes: int, decays: Sequence[float], fold_N: Tensor
) -> Tensor:
    """Returns the logits of each clip by the regression that has not seen its fold, [decays, N, K]."""

    def logits_of(decay_P: list[float], weight_PN: Tensor) -> Tensor:
        weight, bias = fit(x_Nr, label_N, num_classes, decay_P, weight_PN)
        return x_Nr @ weight + bias[:, None]

    return held_out_logits(logits_of, decays, fold_N)
