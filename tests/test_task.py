"""The LightningModule takes the authors' training steps, and its heads, targets and mixing are the right ones."""

import pytest
import torch
import torch.nn.functional as F
from parity import HALF, MODELS, trainstep_errors

from vivit_train.models.vivit import ViViT
from vivit_train.training.losses import CrossEntropy
from vivit_train.training.module import VideoClassifier


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("precision", ["64-true", "32-true"])
def test_four_steps_are_the_authors(model: str, precision: str) -> None:
    """With mixup, label smoothing 0.3, clipping to 1, momentum 0.9, warm-up and cosine."""
    errors = trainstep_errors(f"trainstep_{model}", precision)
    assert set(errors) == {"loss", "grad_norm", "lr", "parameters"}
    assert max(errors.values()) < 1e-5, errors


def small_net(num_classes: int | dict[str, int]) -> ViViT:
    return ViViT(
        "vivit_fe",
        num_classes=num_classes,
        frames=2,
        image_size=8,
        tubelet=(1, 4, 4),
        dim=8,
        depth=1,
        heads=2,
        temporal_depth=1,
    )


def two_headed() -> VideoClassifier:
    torch.manual_seed(0)
    net = small_net({"verb": 3, "noun": 7})
    torch.nn.init.normal_(net.head.weight)
    classes = {"verb": list("abc"), "noun": list("defghij")}
    return VideoClassifier(net, classes, HALF, HALF, loss=CrossEntropy(0.2), mixup=0.3)


def test_the_loss_of_two_heads_is_their_mean() -> None:
    task = two_headed()
    video = torch.rand(4, 3, 2, 8, 8)
    logits = task.net(video)
    label_BH = torch.tensor([[0, 6], [2, 1], [1, 1], [0, 3]])
    expected = [
        F.cross_entropy(logits[head], label_BH[:, i], label_smoothing=0.2)
        for i, head in enumerate(("verb", "noun"))
    ]
    torch.testing.assert_close(task.loss(task.logits(video), label_BH), (expected[0] + expected[1]) / 2)


def test_mixing_reaches_both_heads() -> None:
    task = two_headed()
    label_BH = torch.tensor([[0, 6], [2, 1], [1, 1], [0, 3]])
    video = torch.arange(4).view(4, 1, 1, 1, 1).expand(4, 2, 3, 8, 8).to(torch.uint8) * 60
    torch.manual_seed(3)
    mixed, target = task.training_input({"video": video, "label": label_BH})
    verb, noun = task.by_head(target)
    own = float((mixed[1, 0, 0, 0, 0] + 1) * 127.5 / 60)  # clip 1's share in itself; the rest is clip 0, all black
    assert 0 < own < 1
    torch.testing.assert_close(verb[1], torch.tensor([1 - own, 0, own]), atol=1e-5, rtol=0)
    torch.testing.assert_close(noun[1, [6, 1]], torch.tensor([1 - own, own]), atol=1e-5, rtol=0)
    torch.testing.assert_close(verb.sum(1), torch.ones(4))
    torch.testing.assert_close(noun.sum(1), torch.ones(4))


def several(**settings: float) -> VideoClassifier:
    """Of a model that names any number of three classes."""
    return VideoClassifier(small_net(3), {"": list("abc")}, HALF, HALF, multi_label=True, **settings)


HAS_BK = torch.tensor([[True, False, True], [False, False, False], [False, True, False], [True, True, True]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_class_is_a_question_of_its_own(dtype: torch.dtype) -> None:
    logits_BK = torch.randn(4, 3, dtype=dtype)
    p_BK = logits_BK.sigmoid()
    right_BK = torch.where(HAS_BK, p_BK, 1 - p_BK)
    torch.testing.assert_close(several().loss(logits_BK, HAS_BK), -right_BK.log().mean())
    smooth_BK = 0.1 + 0.8 * HAS_BK.to(dtype)
    expected = F.binary_cross_entropy(p_BK, smooth_BK)
    torch.testing.assert_close(several(loss=CrossEntropy(0.2, multi_label=True)).loss(logits_BK, HAS_BK), expected)


@pytest.mark.parametrize("settings", [{"mixup": 0.4}, {"cutmix": 0.4}, {"mixup": 0.4, "cutmix": 0.4}])
def test_mixed_clips_have_a_share_of_each_other_s_classes(settings: dict[str, float]) -> None:
    video = torch.arange(4).view(4, 1, 1, 1, 1).expand(4, 2, 3, 8, 8).to(torch.uint8) * 60
    torch.manual_seed(3)
    mixed, target_BK = several(**settings).training_input({"video": video, "label": HAS_BK})
    own = float((mixed[1].mean() + 1) * 127.5 / 60)  # clip 1's share in itself; the rest is clip 0, all black
    assert 0 < own < 1
    has_BK = HAS_BK.float()
    torch.testing.assert_close(target_BK, own * has_BK + (1 - own) * has_BK.roll(1, 0), atol=1e-5, rtol=0)


def test_the_main_score_has_its_name() -> None:
    assert (several().main_score, two_headed().main_score) == ("map", "action_top1")
