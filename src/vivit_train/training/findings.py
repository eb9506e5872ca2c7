"""What a result means, in a few numbers and sentences at the top of the report."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vivit_train.training.answers import Answers, chance
from vivit_train.training.result import TITLES, Result
from vivit_train.training.statistics import calibration, confused, views_accuracy
from vivit_train.utils.text import percent, plural, shorten

NAMED, NAME = 3, 40  # classes in a sentence, and the length of their names
MOSTLY = 0.6  # A class that gets this share of the predictions is pointed out if no class is that frequent.
MISCALIBRATED = 0.1


def tiles(result: Result) -> list[dict[str, Any]]:
    """Returns the main numbers: a name, a value, a detail and, for shares, what a bar shows."""
    found = [score_tile(result, name) for name in result.intervals if name.rpartition("_")[2] in TITLES]
    for head in result.heads:
        found.append(mean_tile(result, head))
        error = calibration(head).error
        if not np.isnan(error):
            name = f"{head.head} calibration error".strip()
            found.append({"name": name, "value": f"{error:.2f}", "detail": "0: confidence equals accuracy"})
    failed = int(result.counts["failed"])
    unreadable = f"{failed:,} unreadable, counted as wrong" if failed else "all could be read"
    return [*found, {"name": "videos", "value": f"{int(result.counts['n']):,}", "detail": unreadable}]


def score_tile(result: Result, name: str) -> dict[str, Any]:
    """Returns the tile of a top-1, top-5 or mAP, with chance for the main score."""
    head, _, kind = name.rpartition("_")
    (low, high), (value, detail) = result.intervals[name], result.score_text(name).split(" (")
    tile = {"name": f"{head} {TITLES[kind]}".strip(), "value": value, "detail": detail.rstrip(")")}
    if np.isnan([result.scores[name], low, high]).any():
        return tile
    guess = chance(result.rows["label"]) if name == result.main_score else None
    tile["detail"] += f", chance {percent(guess)}" if guess is not None else ""
    return tile | {"share": result.scores[name], "low": low, "high": high, "chance": guess}


def mean_tile(result: Result, head: Answers) -> dict[str, Any]:
    """Returns the tile of the mean F1 and AUC over the classes."""
    name = f"{head.prefix}macro_f1"
    f1, (low, high), auc = result.scores[name], result.intervals[name], result.scores[f"{head.prefix}macro_auc"]
    detail = f"95 % CI {low:.2f} to {high:.2f}; AUC {auc:.2f}"
    return {"name": f"{head.head} F1, mean over classes".strip(), "value": f"{f1:.2f}", "detail": detail}


def findings(result: Result) -> list[str]:
    """Returns sentences about the result as a whole, then about each head."""
    found = [against_chance(result)]
    accuracy, *_ = views_accuracy(result.rows)
    if len(accuracy) > 1:
        gain = 100 * (accuracy[-1] - accuracy[0])
        found.append(f"{len(accuracy)} views change the accuracy of one view by {gain:+.1f} percentage points.")
    for head in result.heads:
        found += head_findings(head, result.by_class[result.heads.index(head)].recall)
    return found


def against_chance(result: Result) -> str:
    """Returns a sentence that compares the main score and its interval with chance."""
    name = result.main_score
    (low, high), guess = result.intervals[name], chance(result.rows["label"])
    title = f"{name.rpartition('_')[0]} {TITLES[name.rpartition('_')[2]]}".strip()
    rival = "a random order" if result.multi_label else "always answering the most frequent class"
    start = f"On other videos like these, expect a {title} between {percent(low)} and {percent(high)}"
    if low > guess:
        return f"{start}. That is better than {rival} ({percent(guess)})."
    if high < guess:
        return f"{start}. That is worse than {rival} ({percent(guess)}): check the labels and the preprocessing."
    return f"{start}. That is no evidence of being better than {rival} ({percent(guess)})."


def head_findings(head: Answers, recall: NDArray[np.float64]) -> list[str]:
    """Returns sentences about the classes and the confidence of one head."""
    start, found = f"{head.head.capitalize()}: " if head.head else "", []
    order = [int(k) for k in np.argsort(-recall, kind="stable") if not np.isnan(recall[k])]
    count = min(NAMED, len(order) // 2)
    if len(order) > 2 and recall[order[count - 1]] > recall[order[-count]]:
        best, worst = (
            ", ".join(f"{shorten(head.classes[k], NAME)} ({percent(recall[k])})" for k in chosen)
            for chosen in (order[:count], order[: -count - 1 : -1])
        )
        found.append(f"{start}recognized best: {best}; worst: {worst}.")
    if not head.multi_label:
        found += [f"{start}{sentence}" for sentence in single_label_findings(head)]
    return [sentence[0].upper() + sentence[1:] for sentence in found]


def single_label_findings(head: Answers) -> list[str]:
    """Returns sentences about confusions, a class that takes most predictions, and confidence."""
    found, n = [], len(head.failed)
    for count, true, predicted in confused(head, 1):
        if count == 1:  # A single video is no pattern.
            break
        names = [f"“{shorten(head.classes[k], NAME)}”" for k in (true, predicted)]
        found.append(
            f"the most frequent confusion: {count} of {plural(int(head.has[:, true].sum()), 'video')} of "
            f"{names[0]} are taken for {names[1]}."
        )
    shares, truth = head.predicted.sum(0) / n, head.has.sum(0) / n
    if shares.max() > MOSTLY > truth.max():
        name = shorten(head.classes[int(shares.argmax())], NAME)
        found.append(
            f"{percent(shares.max())} of the predictions are “{name}”: the model hardly distinguishes classes."
        )
    readable = ~head.failed
    if readable.any():
        confidence = head.probability[readable].max(1).mean()
        accuracy = (head.predictions == head.labels)[readable].mean()
        how = "overconfident" if confidence > accuracy + MISCALIBRATED else "underconfident"
        if abs(confidence - accuracy) > MISCALIBRATED:
            found.append(
                f"the model is {how}: its mean confidence is {percent(confidence)}, and {percent(accuracy)} of "
                "its answers are right."
            )
    return found


def confidently_wrong(result: Result) -> NDArray[np.int64]:
    """Returns the readable rows with a wrong answer, the most confident first.

    For multi-label data, it is the confidence in the most wrong decision about a class, if above 0.5.
    """
    if result.multi_label:
        (head,) = result.heads
        confidence = np.where(head.has, 1 - head.probability, head.probability).max(1)
        wrong = confidence > 0.5
    else:
        confidence = np.prod([head.probability.max(1) for head in result.heads], axis=0)
        wrong = np.any([head.predictions != head.labels for head in result.heads], axis=0)
    rows = np.flatnonzero(wrong & ~result.rows["failed"])
    return rows[np.argsort(-confidence[rows], kind="stable")]
