"""Every video counts once, in the manifest's order, and one that could not be read is a wrong answer."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from vivit_train.metrics import VideoTable, score


def table(batches: list[list[int]], logits_NK: Tensor, label_N: Tensor, failed_N: Tensor) -> VideoTable:
    """A table that saw the videos of each batch, by index."""
    result = VideoTable()
    for batch in batches:
        index = torch.tensor(batch)
        result.update(index, logits_NK[index], label_N[index], failed_N[index])
    return result


@pytest.mark.parametrize(
    "batches",
    [
        [[0, 1, 2, 3, 4, 5]],
        [[5, 0], [3, 1], [4, 2]],
        [[0, 2, 4], [1, 3, 5], [0, 2, 4]],  # padded: some come twice
        [[5], [5], [5, 4, 3], [2, 1, 0], [0]],
    ],
)
def test_scores_do_not_depend_on_batches(batches: list[list[int]]) -> None:
    torch.manual_seed(0)
    logits, label = torch.randn(6, 8), torch.randint(8, (6,))
    failed = torch.tensor([False, True, False, False, False, False])
    rows = table(batches, logits, label, failed).compute()
    assert rows["index"].tolist() == list(range(6))
    assert np.array_equal(rows["logits"], logits.numpy())
    assert np.array_equal(rows["label"], label.numpy())
    assert np.array_equal(rows["failed"], failed.numpy())
    assert score(rows)["n"] == 6


def test_a_rank_sees_its_rows_of_the_manifest_only() -> None:
    logits, label = torch.eye(6), torch.arange(6)
    rows = table([[1, 3], [5]], logits, label, torch.zeros(6, dtype=torch.bool)).compute()
    assert rows["index"].tolist() == [1, 3, 5]
    assert rows["label"].tolist() == [1, 3, 5]


def test_reset_forgets() -> None:
    logits, label, fine = torch.eye(2), torch.arange(2), torch.zeros(2, dtype=torch.bool)
    videos = table([[0]], logits, label, fine)
    videos.reset()
    videos.update(torch.tensor([1]), logits[1:], label[1:], fine[1:])
    assert videos.compute()["index"].tolist() == [1]


def test_half_precision_logits_are_kept_as_float32() -> None:
    videos = VideoTable()
    videos.update(torch.tensor([0]), torch.ones(1, 3).bfloat16(), torch.tensor([0]), torch.tensor([False]))
    assert videos.compute()["logits"].dtype == np.float32


def test_top1_and_top5() -> None:
    logits = torch.arange(8.0).expand(4, -1)  # the order is 7, 6, 5, 4, 3 | 2, 1, 0
    label = torch.tensor([7, 3, 2, 6])
    scores = score(table([[0, 1, 2, 3]], logits, label, torch.zeros(4, dtype=torch.bool)).compute())
    assert (scores["top1"], scores["top5"], scores["n"], scores["failed"]) == (0.25, 0.75, 4, 0)
    expected = torch.nn.functional.cross_entropy(logits, label).item()
    assert scores["loss"] == pytest.approx(expected)


def test_failed_videos_are_wrong_answers_and_keep_out_of_the_loss() -> None:
    logits, label = 9 * torch.eye(8)[:4], torch.arange(4)  # all right
    failed = torch.tensor([True, False, False, True])
    scores = score(table([[0, 1, 2, 3]], logits, label, failed).compute())
    assert (scores["top1"], scores["top5"], scores["n"], scores["failed"]) == (0.5, 0.5, 4, 2)
    assert scores["loss"] == pytest.approx(score(table([[1, 2]], logits, label, failed).compute())["loss"])
    nothing = score(table([[0, 3]], logits, label, failed).compute())
    assert (nothing["top1"], nothing["n"], nothing["failed"]) == (0.0, 2, 2)
    assert math.isnan(nothing["loss"])


@pytest.mark.parametrize(("classes", "has_top5"), [(2, False), (5, False), (6, True)])
def test_top5_needs_more_than_five_classes(classes: int, has_top5: bool) -> None:
    rows = table(
        [[0]], torch.eye(classes), torch.arange(classes), torch.zeros(classes, dtype=torch.bool)
    ).compute()
    assert ("top5" in score(rows)) == has_top5
