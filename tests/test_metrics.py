"""Every video counts once, in the manifest's order, and one that could not be read is a wrong answer."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vivit_train.metrics import Rows, VideoTable, score


def table(batches: list[list[int]], logits_NK: Tensor, label_N: Tensor, failed_N: Tensor) -> VideoTable:
    """A table that saw the videos of each batch, by index."""
    result = VideoTable()
    for batch in batches:
        index = torch.tensor(batch)
        result.update(index, logits_NK[index], label_N[index][:, None], failed_N[index])
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
    assert np.array_equal(rows["label"][:, 0], label.numpy())
    assert np.array_equal(rows["failed"], failed.numpy())
    assert score(rows, {"": 8})["n"] == 6


def test_a_rank_sees_its_rows_of_the_manifest_only() -> None:
    logits, label = torch.eye(6), torch.arange(6)
    rows = table([[1, 3], [5]], logits, label, torch.zeros(6, dtype=torch.bool)).compute()
    assert rows["index"].tolist() == [1, 3, 5]
    assert rows["label"][:, 0].tolist() == [1, 3, 5]


def test_reset_forgets() -> None:
    logits, label, fine = torch.eye(2), torch.arange(2), torch.zeros(2, dtype=torch.bool)
    videos = table([[0]], logits, label, fine)
    videos.reset()
    videos.update(torch.tensor([1]), logits[1:], label[1:, None], fine[1:])
    assert videos.compute()["index"].tolist() == [1]


def test_half_precision_logits_are_kept_as_float32() -> None:
    videos = VideoTable()
    videos.update(torch.tensor([0]), torch.ones(1, 3).bfloat16(), torch.tensor([[0]]), torch.tensor([False]))
    assert videos.compute()["logits"].dtype == np.float32


def test_top1_and_top5() -> None:
    logits = torch.arange(8.0).expand(4, -1)  # the order is 7, 6, 5, 4, 3 | 2, 1, 0
    label = torch.tensor([7, 3, 2, 6])
    scores = score(table([[0, 1, 2, 3]], logits, label, torch.zeros(4, dtype=torch.bool)).compute(), {"": 8})
    assert (scores["top1"], scores["top5"], scores["n"], scores["failed"]) == (0.25, 0.75, 4, 0)
    expected = torch.nn.functional.cross_entropy(logits, label).item()
    assert scores["loss"] == pytest.approx(expected)


def test_failed_videos_are_wrong_answers_and_keep_out_of_the_loss() -> None:
    logits, label = 9 * torch.eye(8)[:4], torch.arange(4)  # all right
    failed = torch.tensor([True, False, False, True])
    scores = score(table([[0, 1, 2, 3]], logits, label, failed).compute(), {"": 8})
    assert (scores["top1"], scores["top5"], scores["n"], scores["failed"]) == (0.5, 0.5, 4, 2)
    assert scores["loss"] == pytest.approx(
        score(table([[1, 2]], logits, label, failed).compute(), {"": 8})["loss"]
    )
    nothing = score(table([[0, 3]], logits, label, failed).compute(), {"": 8})
    assert (nothing["top1"], nothing["n"], nothing["failed"]) == (0.0, 2, 2)
    assert math.isnan(nothing["loss"])


@pytest.mark.parametrize(("classes", "has_top5"), [(2, False), (5, False), (6, True)])
def test_top5_needs_more_than_five_classes(classes: int, has_top5: bool) -> None:
    rows = table(
        [[0]], torch.eye(classes), torch.arange(classes), torch.zeros(classes, dtype=torch.bool)
    ).compute()
    assert ("top5" in score(rows, {"": classes})) == has_top5


def two_heads(n: int = 40, verbs: int = 7, nouns: int = 9, failed: tuple[int, ...] = ()) -> Rows:
    draw = np.random.default_rng(0)
    label = np.stack([draw.integers(verbs, size=n), draw.integers(nouns, size=n)], axis=1)
    logits = draw.normal(size=(n, verbs + nouns)).astype(np.float32)
    logits[np.arange(n), label[:, 0]] += 1.5
    logits[np.arange(n), verbs + label[:, 1]] += 1.5
    return {
        "index": np.arange(n),
        "label": label,
        "logits": logits,
        "failed": np.isin(np.arange(n), failed),
    }


def test_an_action_is_the_pair_of_verb_and_noun() -> None:
    rows = two_heads(failed=(3, 8))
    scores = score(rows, {"verb": 7, "noun": 9})
    logits = torch.from_numpy(rows["logits"]).double()
    verb, noun = logits[:, :7].softmax(1), logits[:, 7:].softmax(1)
    label, fine = torch.from_numpy(rows["label"]), torch.from_numpy(~rows["failed"])
    pairs = (verb[:, :, None] * noun[:, None]).flatten(1)  # all of them, as the challenge defines it
    pair = label[:, 0] * 9 + label[:, 1]
    for name, probabilities, wanted in (
        ("verb", verb, label[:, 0]),
        ("noun", noun, label[:, 1]),
        ("action", pairs, pair),
    ):
        right = probabilities.topk(5, dim=1).indices == wanted[:, None]
        right &= fine[:, None]
        assert scores[f"{name}_top1"] == pytest.approx(right[:, 0].double().mean().item())
        assert scores[f"{name}_top5"] == pytest.approx(right.any(1).double().mean().item())
    both = (verb.argmax(1) == label[:, 0]) & (noun.argmax(1) == label[:, 1]) & fine
    assert scores["action_top1"] == pytest.approx(both.double().mean().item())
    assert 0 < scores["action_top1"] < scores["verb_top1"] < scores["verb_top5"] < 1
    losses = [
        F.cross_entropy(part[fine], wanted[fine])
        for part, wanted in ((logits[:, :7], label[:, 0]), (logits[:, 7:], label[:, 1]))
    ]
    assert scores["loss"] == pytest.approx(float(sum(losses)) / 2)
    assert "top1" not in scores
    assert (scores["n"], scores["failed"]) == (40, 2)


def test_heads_of_few_classes_make_actions_too() -> None:
    scores = score(two_heads(verbs=2, nouns=3), {"verb": 2, "noun": 3})
    assert "verb_top5" not in scores
    assert scores["action_top1"] < scores["action_top5"] < 1  # of six pairs
