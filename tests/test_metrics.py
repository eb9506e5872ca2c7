"""Every video counts once, in the manifest's order, and one that could not be read is a wrong answer."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.classification import multilabel_average_precision

from vivit_train.training.metrics import Rows, VideoTable, average_precision, score, score_multi_label


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
    expected = logits.masked_fill(failed[:, None], math.nan)  # no prediction for a video that cannot be read
    assert np.array_equal(rows["logits"], expected.numpy(), equal_nan=True)
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


def by_definition(score_N: np.ndarray, has_N: np.ndarray) -> float:
    """Whatever is scored at least t is taken for the class: precision times the recall gained, for each t."""
    total, before = 0.0, 0.0
    for threshold in sorted(set(score_N.tolist()), reverse=True):
        taken = score_N >= threshold
        recall = has_N[taken].sum() / has_N.sum()
        total += has_N[taken].mean() * (recall - before)
        before = recall
    return total


@pytest.mark.parametrize("values", [2, 5, 1000, None], ids="{} different scores".format)
def test_average_precision_is_its_definition_ties_included(values: int | None) -> None:
    draw = np.random.default_rng(0)
    for n in (1, 2, 3, 10, 40, 100) * 5:
        score_N = draw.normal(size=n) if values is None else draw.integers(values, size=n).astype(float)
        has_N = draw.random(n) < draw.uniform(0.05, 0.95)
        has_N[draw.integers(n)] = True
        assert average_precision(score_N, has_N) == pytest.approx(by_definition(score_N, has_N), abs=1e-12)
        shuffled = draw.permutation(n)
        assert average_precision(score_N[shuffled], has_N[shuffled]) == pytest.approx(
            average_precision(score_N, has_N), abs=1e-12
        )


def test_average_precision_at_its_ends() -> None:
    has_N = np.array([True, True, False, False])
    assert average_precision(np.array([3.0, 2.0, 1.0, 0.0]), has_N) == 1
    assert average_precision(np.array([0.0, 1.0, 2.0, 3.0]), has_N) == pytest.approx((1 / 3 + 2 / 4) / 2)
    assert average_precision(np.zeros(4), has_N) == 0.5  # nothing said: chance
    assert average_precision(np.array([99.0, 98.0, 97.0, 96.0]), has_N) == 1  # large, and still different
    assert math.isnan(average_precision(np.zeros(4), np.zeros(4, bool)))


def several_labels(n: int = 50, classes: int = 7) -> Rows:
    draw = np.random.default_rng(1)
    label = draw.random((n, classes)) < 0.3
    label[:, 2] = False  # a class that no video has
    logits = (draw.normal(size=(n, classes)) + label).round(1).astype(np.float32)
    return {"index": np.arange(n), "label": label, "logits": logits, "failed": np.zeros(n, bool)}


def test_map_is_the_mean_over_the_classes_that_there_are() -> None:
    rows = several_labels()
    scores = score_multi_label(rows)
    logits, label = torch.from_numpy(rows["logits"]), torch.from_numpy(rows["label"])
    there = [k for k in range(7) if k != 2]
    assert scores["map"] == pytest.approx(
        np.mean([by_definition(rows["logits"][:, k], rows["label"][:, k]) for k in there])
    )
    theirs = multilabel_average_precision(logits[:, there], label[:, there].long(), 6)  # no logit here is large
    assert scores["map"] == pytest.approx(theirs.item(), abs=1e-6)
    assert scores["loss"] == pytest.approx(F.binary_cross_entropy_with_logits(logits, label.float()).item())
    assert (scores["map_classes"], scores["n"], scores["failed"]) == (6, 50, 0)


def test_a_failed_video_comes_after_all_others_and_keeps_out_of_the_loss() -> None:
    rows = several_labels()
    rows["failed"][[4, 9]] = True
    rows["logits"][[4, 9]] = 50  # whatever the zeros in its place were taken for
    fine = ~rows["failed"]
    scores = score_multi_label(rows)
    last = rows | {"logits": rows["logits"].copy(), "failed": np.zeros(50, bool)}
    last["logits"][[4, 9]] = -100
    assert scores["map"] == score_multi_label(last)["map"]
    perfect = rows | {"logits": rows["label"].astype(np.float32)}
    assert score_multi_label(perfect)["map"] < 1 == score_multi_label(perfect | {"failed": ~fine & fine})["map"]
    without = score_multi_label({name: column[fine] for name, column in rows.items()})
    assert scores["loss"] == without["loss"]
    assert (scores["n"], scores["failed"]) == (50, 2)
    nothing = score_multi_label(rows | {"failed": np.ones(50, bool)})
    assert nothing["map"] == pytest.approx(rows["label"].mean(0)[rows["label"].any(0)].mean())
    assert math.isnan(nothing["loss"])


def test_a_model_that_says_nothing_scores_as_chance() -> None:
    rows = several_labels()
    chance = rows["label"].mean(0)[rows["label"].any(0)].mean()
    for value in (0, math.nan):  # a run that diverged is no better than one that did not start
        said = rows | {"logits": np.full_like(rows["logits"], value)}
        assert score_multi_label(said)["map"] == pytest.approx(chance)


def test_without_any_label_there_is_no_score() -> None:
    rows = several_labels()
    scores = score_multi_label(rows | {"label": np.zeros_like(rows["label"])})
    assert math.isnan(scores["map"])
    assert scores["map_classes"] == 0


def test_sets_of_labels_do_not_depend_on_batches() -> None:
    rows = several_labels(6)
    videos = VideoTable()
    for batch in ([5, 0], [3, 1], [4, 2], [0, 2]):
        parts = (torch.from_numpy(rows[name][batch]) for name in ("index", "logits", "label", "failed"))
        videos.update(*parts)
    seen = videos.compute()
    for name, column in rows.items():
        assert np.array_equal(seen[name], column), name
