"""The losses for frequent and rare classes: their definitions, and that a configuration gives them the counts."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor

from vivit_train.run import train
from vivit_train.training.losses import CrossEntropy, Focal, LogitAdjusted
from vivit_train.utils.errors import UserError

COUNTS = [60, 30, 10]
LOGITS_BK = torch.tensor([[2.0, -1.0, 0.5], [0.0, 1.0, 3.0], [-2.0, 0.3, 0.1], [0.4, 0.4, 0.4]])
LABEL_B = torch.tensor([0, 2, 1, 0])
SHARE_BK = F.one_hot(LABEL_B, 3) * 0.7 + F.one_hot(LABEL_B.flip(0), 3) * 0.3


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("target", [LABEL_B, SHARE_BK], ids=["ids", "shares"])
@pytest.mark.parametrize(
    "loss",
    [
        lambda smoothing: Focal(0.0, smoothing),
        lambda smoothing: LogitAdjusted(0.0, smoothing, class_counts=COUNTS),
        lambda smoothing: CrossEntropy(smoothing, [2, 2, 2], class_counts=COUNTS),
        lambda smoothing: CrossEntropy(smoothing, "balanced", class_counts=[5, 5, 5]),
    ],
    ids=["focal", "logit_adjusted", "equal weights", "equal counts"],
)
def test_each_is_the_cross_entropy_in_its_limit(
    loss: Callable[[float], CrossEntropy], target: Tensor, smoothing: float
) -> None:
    expected = F.cross_entropy(LOGITS_BK, target, label_smoothing=smoothing)
    torch.testing.assert_close(loss(smoothing)(LOGITS_BK, target), expected)


def test_balanced_weights_give_each_class_the_same_total() -> None:
    loss = CrossEntropy(class_weights="balanced", class_counts=[*COUNTS, 0])
    assert loss.weight is not None
    total_K = loss.weight[:3] * torch.tensor(COUNTS)
    torch.testing.assert_close(total_K, torch.full((3,), 100 / 3))
    assert loss.weight.isfinite().all()


def test_a_batch_in_parts_has_the_same_loss() -> None:
    """Weights by the batch's own sum, as in torch's mean, would depend on the micro-batch."""
    loss = CrossEntropy(class_weights="balanced", class_counts=COUNTS)
    halves = [loss(LOGITS_BK[rows], LABEL_B[rows]) for rows in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(torch.stack(halves).mean(), loss(LOGITS_BK, LABEL_B))


def test_the_focal_loss_is_that_of_its_paper() -> None:
    p_B = LOGITS_BK.softmax(1)[torch.arange(4), LABEL_B]
    torch.testing.assert_close(Focal(2.0)(LOGITS_BK, LABEL_B), (-((1 - p_B) ** 2) * p_B.log()).mean())
    present_BK = F.one_hot(LABEL_B, 3).float()
    p_BK = torch.where(present_BK == 1, LOGITS_BK.sigmoid(), 1 - LOGITS_BK.sigmoid())
    torch.testing.assert_close(
        Focal(1.5, multi_label=True)(LOGITS_BK, present_BK), (-((1 - p_BK) ** 1.5) * p_BK.log()).mean()
    )


def test_adjusted_logits_are_unbiased() -> None:
    """Equal logits are optimal for clips that only follow the class frequencies."""
    prior_K = torch.tensor(COUNTS) / 100
    logits_BK = torch.zeros(100, 3, requires_grad=True)
    label_B = torch.repeat_interleave(torch.arange(3), torch.tensor(COUNTS))
    loss = LogitAdjusted(class_counts=COUNTS)(logits_BK, label_B)
    torch.testing.assert_close(loss, F.cross_entropy(prior_K.log().expand(100, 3), label_B))
    (gradient_BK,) = torch.autograd.grad(loss, logits_BK)
    torch.testing.assert_close(gradient_BK.sum(0), torch.zeros(3), atol=1e-6, rtol=0)


@pytest.mark.parametrize("weights", [[1.0, 2.0], [1.0, 2.0, -1.0], [1.0, float("nan"), 1.0]])
def test_weights_that_do_not_fit_are_refused(weights: list[float]) -> None:
    with pytest.raises(UserError, match="must be balanced or 3 numbers, one per class"):
        CrossEntropy(class_weights=weights, class_counts=COUNTS)


@pytest.mark.parametrize(
    "words",
    [
        ["loss.class_weights=balanced"],
        pytest.param(["loss=focal", "loss.class_weights=balanced"], marks=pytest.mark.slow),
        pytest.param(["loss=logit_adjusted"], marks=pytest.mark.slow),
    ],
)
def test_a_run_counts_its_classes(
    words: list[str], config: Callable[..., DictConfig], videos: Path, tmp_path: Path
) -> None:
    train(config("data=folder", f"data.root={videos}", "loss.label_smoothing=0.1", *words))
    stored = torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)
    assert stored["vivit_train"]["class_counts"] == {"": [3] * 8}
    assert not [name for name in stored["state_dict"] if name.startswith("criterion")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["loss.class_weights=even"], "loss.class_weights=even: must be"),
        (["loss=focal", "loss.gamma=-1"], "loss.gamma=-1: must be between 0 and 100"),
        (["+loss.class_counts=[1]"], "loss.class_counts: it follows from the data"),
        (["+loss.multi_label=true"], "loss.multi_label: it follows from the data"),
        (["loss.class_weights=[1,2]"], "must be balanced or 8 numbers, one per class"),
    ],
)
def test_wrong_words_are_refused(
    words: list[str], message: str, config: Callable[..., DictConfig], videos: Path
) -> None:
    with pytest.raises(UserError) as error:
        train(config("data=folder", f"data.root={videos}", *words))
    assert message in str(error.value)
