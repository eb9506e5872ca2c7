"""The result of an evaluation as data for metrics.json and as lines for the terminal."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vivit_train.training.answers import Answers, answers_of
from vivit_train.training.metrics import Rows, score, score_multi_label
from vivit_train.training.statistics import (
    MACRO,
    ClassScores,
    Interval,
    class_scores,
    macro_intervals,
    map_interval,
    top_intervals,
)
from vivit_train.utils.text import percent, plural, printable, shorten

LISTED, LOWEST = 10, 5  # A result lists up to 10 classes in the terminal, and else the 5 with the lowest recall.
NAME = 32  # Class names are shortened to this many characters in the terminal.
NARROW = 0.05  # Narrower intervals have a decimal.
TITLES = {"top1": "top-1", "top5": "top-5", "map": "mAP"}


@dataclass(frozen=True)
class Result:
    """The result of an evaluation.

    Attributes:
        rows: The table of the videos, from `VideoTable.compute`.
        classes: The class names by head.
        paths: The video file of each row. Several clips of one file are not independent.
    """

    rows: Rows
    classes: Mapping[str, Sequence[str]]
    paths: NDArray[Any]

    @property
    def multi_label(self) -> bool:
        """Whether a video may have any number of classes."""
        return self.rows["label"].dtype == np.bool

    @cached_property
    def heads(self) -> list[Answers]:
        """The answers of each head."""
        return answers_of(self.rows, self.classes)

    @cached_property
    def by_class(self) -> list[ClassScores]:
        """The scores by class of each head."""
        return [class_scores(head) for head in self.heads]

    @property
    def main_score(self) -> str:
        """The name of the score that stands for the whole result."""
        return "map" if self.multi_label else "action_top1" if len(self.heads) > 1 else "top1"

    @cached_property
    def sizes(self) -> dict[str, int]:
        """The number of classes by head."""
        return {head: len(names) for head, names in self.classes.items()}

    @cached_property
    def counts(self) -> dict[str, float]:
        """The scores of `score` or `score_multi_label`, with the loss, n, and the number of failed videos."""
        return score_multi_label(self.rows) if self.multi_label else score(self.rows, self.sizes)

    @cached_property
    def scores(self) -> dict[str, float]:
        """The scores by name: top1, top5 or map, then the means over the classes: macro_recall, ..."""
        found = {name: value for name, value in self.counts.items() if name.endswith(("top1", "top5", "map"))}
        for head, by_class in zip(self.heads, self.by_class, strict=True):
            found |= {f"{head.prefix}macro_{name}": value for name, value in by_class.macro().items()}
        return found

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        """The 95 % intervals of the scores. The mean AUC has none."""
        if self.multi_label:
            found = {"map": map_interval(self.rows, self.paths)}
        else:
            found = top_intervals(self.rows, self.sizes, self.paths)
        for head in self.heads:
            ends = macro_intervals(head, self.paths)
            found |= {f"{head.prefix}macro_{name}": interval for name, interval in ends.items()}
        return found

    def contents(self, protocol: str) -> dict[str, Any]:
        """Returns the part of metrics.json that follows from the predictions; a value that is undefined is None.

        Args:
            protocol: The views and the order of frames, which are part of the names of scores.
        """
        contents: dict[str, Any] = {f"test/{name}@{protocol}": value for name, value in self.scores.items()}
        contents["intervals"] = {f"test/{name}@{protocol}": list(ends) for name, ends in self.intervals.items()}
        if self.multi_label:
            contents["classes"] = self.counts["map_classes"]
        contents |= {name: self.counts[name] for name in ("n", "failed", "loss")}
        contents["per_class"] = [
            {
                **({"head": head.head} if head.head else {}),
                "class": name,
                "n": int(scores.n[k]),
                "recall": scores.recall[k],
                "recall_interval": [scores.low[k], scores.high[k]],
                "precision": scores.precision[k],
                "f1": scores.f1[k],
                "auc": scores.auc[k],
                **({"ap": scores.ap[k]} if self.multi_label else {}),
            }
            for head, scores in zip(self.heads, self.by_class, strict=True)
            for k, name in enumerate(head.classes)
        ]
        return defined(contents)

    def lines(self, split: str, protocol: str) -> list[str]:
        """Returns the result as text: the scores with their intervals, then the classes."""
        lines = []
        for name in self.intervals:
            of_head, _, kind = name.rpartition("_")
            if kind in TITLES:
                title = " ".join(filter(None, (split, printable(of_head), TITLES[kind])))
                lines.append(f"{title} {self.score_text(name)}, {protocol}")
        for head, by_class in zip(self.heads, self.by_class, strict=True):
            recall, precision, f1, auc = (self.scores[f"{head.prefix}macro_{name}"] for name in MACRO)
            of = f"mean over {plural(int((by_class.n > 0).sum()), f'{printable(head.head)} class'.strip())}"
            lines.append(
                f"{of}: recall {percent(recall)}, precision {percent(precision)}, F1 {f1:.2f}, AUC {auc:.2f}"
            )
            lines += class_table(head, by_class)
        return lines

    def score_text(self, name: str) -> str:
        """Returns a score with its interval, such as "51.7 % (31 of 60, 95 % CI 39 to 64)"."""
        value, (low, high), n = self.scores[name], self.intervals[name], int(self.counts["n"])
        if name == "map":
            of = f"{self.counts['map_classes']} of {self.sizes['']} classes, {n:,} videos"
            return f"{value:.3f} ({of}, 95 % CI {low:.2f} to {high:.2f})"
        digits = 0 if high - low > NARROW else 1
        interval = f"95 % CI {100 * low:.{digits}f} to {100 * high:.{digits}f}"
        return f"{percent(value, 1)} ({round(value * n):,} of {n:,}, {interval})"


def class_table(head: Answers, scores: ClassScores) -> list[str]:
    """Returns the table of the classes as lines; of many classes, those with the lowest recall."""
    chosen = [k for k in np.argsort(scores.recall, kind="stable") if scores.n[k]][:LOWEST]
    if len(head.classes) <= LISTED:
        chosen = list(range(len(head.classes)))
    names = [shorten(printable(head.classes[k]), NAME) for k in chosen]
    rest = len(head.classes) - len(chosen)
    width = max(map(len, [*names, f"lowest of {len(head.classes)}"]))
    title = f"lowest of {len(head.classes)}" if rest else "class"
    lines = [f"  {title:<{width}}      n  recall     95 % CI  precision    F1   AUC"]
    for k, name in zip(chosen, names, strict=True):
        interval = "-" if not scores.n[k] else f"{100 * scores.low[k]:.0f} to {100 * scores.high[k]:.0f}"
        f1, auc = ("-" if math.isnan(value) else f"{value:.2f}" for value in (scores.f1[k], scores.auc[k]))
        lines.append(
            f"  {name:<{width}} {scores.n[k]:>6,} {percent(scores.recall[k]):>7} {interval:>11} "
            f"{percent(scores.precision[k]):>10} {f1:>5} {auc:>5}"
        )
    return lines


def defined(value: Any) -> Any:
    """Returns plain data with None for NaN and infinity: JSON has neither."""
    if isinstance(value, dict):
        return {key: defined(item) for key, item in value.items()}
    if isinstance(value, list):
        return [defined(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value
