"""The LightningModule takes the authors' training steps, and its heads, targets and mixing are the right ones."""

import pytest
import torch
import torch.nn.functional as F
from parity import HALF, MODELS, trainstep_errors

from vivit_train.model.vivit import ViViT
from vivit_train.task import VideoClassification


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("precision", ["64-true", "32-true"])
def test_four_steps_are_the_authors(model: str, precision: str) -> None:
    """With mixup, label smoothing 0.3, clipping to 1, momentum 0.9, warm-up and cosine."""
    errors = trainstep_errors(f"trainstep_{model}", precision)
    assert set(errors) == {"loss", "grad_norm", "lr", "parameters"}
    assert max(errors.values()) < 1e-5, errors


def two_headed() -> VideoClassification:
    torch.manual_seed(0)
    net = ViViT(
        "vivit_fe",
        num_classes={"verb": 3, "noun": 7},
        frames=2,
        image_size=8,
        tubelet=(1, 4, 4),
        dim=8,
        depth=1,
        heads=2,
        temporal_depth=1,
    )
    torch.nn.init.normal_(net.head.weight)
    classes = {"verb": list("abc"), "noun": list("defghij")}
    return VideoClassification(net, classes, HALF, HALF, label_smoothing=0.2, mixup=0.3)


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
