"""Intervals, scores by class, calibration, and how metrics.json, the terminal and predictions.csv state them."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torchmetrics.functional import classification as reference

from vivit_train.training.answers import NO_ANSWER, answers_of, chance, hardest_first, write_predictions
from vivit_train.training.findings import findings
from vivit_train.training.metrics import Rows, average_precision, right_by_views
from vivit_train.training.result import Result
from vivit_train.training.statistics import calibration, class_scores, confused
from vivit_train.utils.intervals import bootstrap, wilson
from vivit_train.utils.plots import accuracy_axis, choice_axis, confusion_axis, optional_picture
from vivit_train.utils.text import csv_cell, percent

NAMES = ("push", "kick", "hug", "point", "=punch", "shake")


def some(n: int = 60, failed: tuple[int, ...] = (), seed: int = 0) -> Rows:
    draw = np.random.default_rng(seed)
    label = draw.integers(len(NAMES), size=(n, 1))
    logits = draw.normal(size=(n, len(NAMES))).astype(np.float32)
    logits[np.arange(n), label[:, 0]] += 1.2
    is_failed = np.isin(np.arange(n), failed)
    logits[is_failed] = np.nan
    return {
        "index": np.arange(n),
        "label": label,
        "logits": logits,
        "failed": is_failed,
        "right": np.zeros((n, 0), np.bool),
    }


def several_labels(n: int = 50, failed: tuple[int, ...] = ()) -> Rows:
    rows = some(n, failed)
    label = np.random.default_rng(1).random((n, len(NAMES))) < 0.3
    label[:, 2] = False  # a class that no video has
    return rows | {"label": label}


def result(rows: Rows) -> Result:
    return Result(rows, {"": NAMES}, rows["index"])


@pytest.mark.parametrize(
    ("share", "digits", "text"),
    [
        *((0.0, 0, "0 %"), (1.0, 0, "100 %"), (0.384, 0, "38 %"), (0.384, 1, "38.4 %"), (math.nan, 0, "-")),
        *((0.996, 0, "99.6 %"), (0.9999, 0, "> 99.9 %"), (0.0004, 0, "< 0.1 %"), (0.004, 0, "0.4 %")),
        *((0.9996, 1, "99.96 %"), (1.0, 1, "100.0 %"), (0.994, 0, "99 %")),
    ],
)
def test_only_all_is_100_percent_and_only_none_is_0(share: float, digits: int, text: str) -> None:
    assert percent(share, digits) == text


def test_wilson_s_interval() -> None:
    low, high = wilson([31, 0, 5, 0], [60, 10, 5, 0])
    assert low[:3] == pytest.approx([0.393, 0.0, 0.566], abs=1e-3)
    assert high[:3] == pytest.approx([0.638, 0.278, 1.0], abs=1e-3)
    assert math.isnan(low[3])
    assert math.isnan(high[3])
    for n in range(1, 300):  # With 60 of 60, rounding would make the upper end less than 1.
        low, high = wilson(np.arange(n + 1), n)
        share = np.arange(n + 1) / n
        assert (low <= share).all()
        assert (share <= high).all()


@pytest.mark.parametrize("score", [1.0, 0.0, float(np.float32(1 / 3))])
def test_any_share_of_the_videos_can_be_drawn(score: float) -> None:
    figure = Figure()
    axis = figure.subplots()
    for n in (1, 3, 10, 13, 60, 300):
        accuracy_axis(axis, [{"epoch": 1, "val/top1": score, "val/score": score, "val/n": n}])
        choice_axis(axis, ["1", "2"], np.array([score, score]), [n, n])
    assert len(axis.containers) == 3 * 6


def test_the_bootstrap_repeats_itself_and_draws_clips_of_one_video_together() -> None:
    right = np.repeat(np.arange(40) % 2 == 0, 5)  # five clips of each of 40 videos, all right or all wrong

    def accuracy(weight: np.ndarray) -> float:
        return float((weight * right).sum() / weight.sum())

    alone, together = bootstrap(accuracy, np.arange(200)), bootstrap(accuracy, np.arange(200) // 5)
    assert np.array_equal(together, bootstrap(accuracy, np.arange(200) // 5))
    low, high = wilson(100, 200)
    assert alone == pytest.approx([float(low), float(high)], abs=0.02)
    assert np.ptp(together) == pytest.approx(np.ptp(alone) * math.sqrt(5), rel=0.1)


def test_scores_by_class_are_those_of_torchmetrics() -> None:
    rows = some()
    (head,) = answers_of(rows, {"": NAMES})
    scores, logits = class_scores(head), torch.from_numpy(rows["logits"])
    label, arguments = torch.from_numpy(rows["label"][:, 0]), {"num_classes": len(NAMES), "average": "none"}
    for name, function in (
        ("recall", reference.multiclass_recall),
        ("precision", reference.multiclass_precision),
        ("f1", reference.multiclass_f1_score),
        ("auc", reference.multiclass_auroc),
        ("ap", reference.multiclass_average_precision),
    ):
        assert getattr(scores, name) == pytest.approx(function(logits, label, **arguments).numpy(), abs=1e-6), name
    error = reference.multiclass_calibration_error(logits.softmax(1), label, len(NAMES), n_bins=15)
    assert calibration(head).error == pytest.approx(error.item(), abs=1e-6)
    assert calibration(head).answers.sum() == 60
    (most, true, predicted), *_ = confused(head, 3)
    assert most == np.sum((head.labels == true) & (head.predictions == predicted)) > 0
    assert true != predicted


def test_a_video_that_cannot_be_read_has_no_prediction_and_is_wrong(tmp_path: Path) -> None:
    rows = some(failed=(0, 7))
    (head,) = answers_of(rows, {"": NAMES})
    assert head.predictions[[0, 7]].tolist() == [NO_ANSWER] * 2
    assert not head.predicted[[0, 7]].any()
    assert head.best(7) == []
    scores, without = class_scores(head), class_scores(answers_of(some(), {"": NAMES})[0])
    assert scores.n.tolist() == without.n.tolist()
    assert calibration(head).answers.sum() == 58
    axis = Figure().subplots()
    confusion_axis(axis, head.labels, head.predictions, NAMES)
    assert [label.get_text() for label in axis.get_xticklabels()] == [*NAMES, "unreadable"]

    ids = [f"{i}.mp4" for i in range(60)]
    write_predictions(tmp_path / "plain.csv", rows, ids, [head])
    write_predictions(tmp_path / "hardest.csv", rows, ids, [head], by_difficulty=True)
    plain, hardest = (list(csv.DictReader((tmp_path / f"{n}.csv").open())) for n in ("plain", "hardest"))
    assert [row["id"] for row in plain] == ids
    assert plain[7] == dict.fromkeys(plain[7], "") | {
        "id": "7.mp4",
        "label": csv_cell(NAMES[head.labels[7]]),
        "failed": "1",
    }
    assert sorted(row["id"] for row in hardest) == sorted(ids)
    assert [row["id"] for row in hardest[:2]] == ["0.mp4", "7.mp4"]
    chances = [float(row["label_probability"]) for row in hardest[2:]]
    assert chances == sorted(chances)
    for row in hardest[2:]:
        best, second = (part.rpartition(" ") for part in row["top5"].split("; ")[:2])
        assert csv_cell(best[0]) == row["prediction"]
        assert float(best[2]) == pytest.approx(float(row["probability"]), abs=1e-3)
        assert float(best[2]) - float(second[2]) == pytest.approx(float(row["margin"]), abs=2e-3)
        assert len([value for name, value in row.items() if name.startswith("logit:")]) == 6


def test_the_hardest_videos_of_several_heads_and_of_several_labels() -> None:
    rows = some()
    heads = answers_of(
        rows | {"label": np.repeat(rows["label"] % 3, 2, 1)}, {"verb": NAMES[:3], "noun": NAMES[3:]}
    )
    losses = heads[0].losses + heads[1].losses
    assert np.array_equal(losses[hardest_first(heads)], np.sort(losses)[::-1])
    (head,) = answers_of(several_labels(failed=(4,)), {"": NAMES})
    assert hardest_first([head])[0] == 4
    expected = torch.nn.functional.binary_cross_entropy(
        torch.from_numpy(head.probability[5]), torch.from_numpy(head.has[5]).double()
    )
    assert head.losses[5] == pytest.approx(expected.item())


def test_the_terminal_states_the_sample_and_its_interval() -> None:
    rows = some()
    rows["logits"] = -10 * np.ones((60, 6), np.float32)
    answer = np.where(np.arange(60) < 31, rows["label"][:, 0], (rows["label"][:, 0] + 1) % 6)
    rows["logits"][np.arange(60), answer] = 10
    first, second, means, *table = result(rows).lines("test", "1x1")
    assert first == "test top-1 51.7 % (31 of 60, 95 % CI 39 to 64), 1x1"
    assert second.startswith("test top-5 ")
    assert means.startswith("mean over 6 classes: recall ")
    assert len(table) == 7
    many = Result(rows, {"": tuple(f"class {k}" for k in range(6)) + tuple("abcdefgh")}, rows["index"])
    rows["logits"] = np.pad(rows["logits"], ((0, 0), (0, 8)), constant_values=-20)
    lines = many.lines("test", "1x1")
    assert "lowest of 14" in lines[3]
    assert len(lines) == 9


def test_metrics_json_has_no_nan_whatever_failed() -> None:
    for make in (some, several_labels):
        for failed in ((), tuple(range(50))):
            contents = result(make(50, failed)).contents("1x1")
            assert json.loads(json.dumps(contents, allow_nan=False)) == contents
            assert contents["failed"] == len(failed)
            for name, (low, high) in contents["intervals"].items():
                assert low - 1e-6 <= contents[name] <= high + 1e-6, name
            assert [row["class"] for row in contents["per_class"]] == list(NAMES)
    contents = result(several_labels()).contents("4x3")
    assert contents["per_class"][2]["ap"] is None  # no video has the class
    assert contents["classes"] == 5


def test_an_average_precision_with_weights_is_that_of_repeated_rows() -> None:
    draw = np.random.default_rng(0)
    score, has, weight = draw.integers(9, size=40), draw.random(40) < 0.4, draw.integers(3, size=40)
    repeated = np.repeat(np.arange(40), weight)
    expected = average_precision(score[repeated], has[repeated])
    assert average_precision(score, has, weight) == pytest.approx(expected)


def test_the_accuracy_by_views_ends_with_that_of_all_views_and_does_not_depend_on_batches() -> None:
    torch.manual_seed(0)
    logits, label, index = torch.randn(20, 6, 9), torch.randint(4, (20, 2)), torch.arange(20)
    heads = {"verb": 4, "noun": 5}
    right = right_by_views(logits, label, index, heads)
    mean = logits.mean(1)
    both = torch.stack([mean[:, :4].argmax(1), mean[:, 4:].argmax(1)], dim=1)
    assert torch.equal(right[:, -1], (both == label).all(1))
    parts = [right_by_views(logits[rows], label[rows], index[rows], heads) for rows in (range(7), range(7, 20))]
    assert torch.equal(torch.cat(parts), right)


def test_the_accuracy_by_views_of_several_labels_is_that_of_the_exact_set() -> None:
    torch.manual_seed(0)
    logits, index = torch.randn(30, 4, 3), torch.arange(30)
    label = torch.rand(30, 3) < 0.5
    right = right_by_views(logits, label, index, {"": 3})
    assert right.shape == (30, 4)
    assert torch.equal(right[:, -1], ((logits.mean(1) > 0) == label).all(1))
    assert 0 < right[:, -1].sum() < 30


def test_chance_knows_the_frequencies_only() -> None:
    assert chance(np.array([[0], [0], [0], [1]])) == 0.75
    assert chance(np.array([[0, 1], [0, 2], [0, 1], [1, 1]])) == 0.5
    assert chance(np.array([[True, False, False], [True, True, False]])) == 0.75


def test_a_picture_that_cannot_be_drawn_does_not_end_a_run(caplog: pytest.LogCaptureFixture) -> None:
    with optional_picture(Path("curves.png")):
        raise ValueError("'yerr' must not contain negative values")
    assert "curves.png could not be drawn, but the run continues: 'yerr' must not" in caplog.text
    with pytest.raises(OSError, match="No space"), optional_picture(Path("curves.png")):
        raise OSError(28, "No space left on device")


def test_curves_have_a_full_axis_chance_and_the_best_epoch() -> None:
    axis = Figure().subplots()
    history = [{"epoch": e, "val/top1": v, "val/score": v, "val/n": 60} for e, v in enumerate((0.4, 0.52, 0.5))]
    accuracy_axis(axis, history, chance=0.5)
    assert axis.get_ylim() == (0, 1)
    labels = axis.get_legend_handles_labels()[1]
    assert labels == ["top-1", "chance 0.50", "best: 0.520 in epoch 1 (95 % CI 0.40 to 0.64)"]


@pytest.mark.parametrize("wrong", [1, 2])
def test_a_single_video_is_no_confusion_to_name(wrong: int) -> None:
    rows = some(24)
    rows["label"] = np.arange(24)[:, None] % 6
    taken_for = np.arange(24) % 6
    taken_for[[0, 6][:wrong]] = 3
    rows["logits"] = 4 * np.eye(6, dtype=np.float32)[taken_for]
    told = " ".join(findings(result(rows)))
    assert ("confusion: 2 of 4 videos of “push” are taken for “point”" in told) == (wrong == 2)
    assert ("confusion" in told) == (wrong == 2)
