"""`vivit compare A B ...`: whether one result is better than another on the same videos, and where."""

import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vivit_train.utils.arguments import conforms
from vivit_train.utils.errors import UserError, reason
from vivit_train.utils.files import read_records, read_text, replacing
from vivit_train.utils.intervals import bootstrap, wilson
from vivit_train.utils.json_file import parse_json
from vivit_train.utils.page import check_replaceable, render
from vivit_train.utils.text import percent, plural, printable, shorten_list, signed

log = logging.getLogger(__name__)

PROTOCOL = {"split": str, "views": str, "order": str, "n": int}  # what results must share, and its types
SIGNIFICANT = 0.05
LISTED = 5  # classes and flipped videos in the terminal
SHOWN = 300  # flipped videos on the page


@dataclass(frozen=True, eq=False)
class Scored:
    """A result as its files state it.

    Attributes:
        name: The folder, as it was given.
        protocol: The values of `PROTOCOL`.
        ids: The name of each video, sorted.
        labels: The true classes of each video, joined over the heads.
        predictions: The predicted classes likewise; "" for a video that could not be read.
        right: Whether each video is right in all heads, bool [N]. For multi-label data, whether the predicted set
            is exactly the true one.
    """

    name: str
    protocol: dict[str, Any]
    ids: list[str]
    labels: list[str]
    predictions: list[str]
    right: NDArray[np.bool]


def read_result(folder: Path) -> Scored:
    """Read metrics.json and predictions.csv of an evaluation.

    Raises:
        UserError: A file is missing or damaged, or is from an earlier version.
    """
    try:
        found = parse_json(read_text(folder / "metrics.json"), folder / "metrics.json")
        table = read_records(folder / "predictions.csv")
    except UserError as error:
        raise UserError(f"{error}; name the folder of a run or an evaluation") from error
    stated = found if isinstance(found, dict) else {}
    if lacking := [key for key, hint in PROTOCOL.items() if not conforms(stated.get(key), hint)]:
        raise UserError(
            f"{folder / 'metrics.json'} has no valid {', '.join(lacking)}: it is damaged or from an earlier "
            "version; evaluate the checkpoint again with eval.py"
        )
    file = folder / "predictions.csv"
    try:
        rows = sorted(table, key=lambda row: row["id"])
        heads = [name.removesuffix("prediction") for name in rows[0] if re.fullmatch(r"([^:]*_)?prediction", name)]
        labels, predictions = (
            [" + ".join(row[f"{head}{kind}"] for head in heads) for row in rows]
            for kind in ("label", "prediction")
        )
        failed, ids = np.array([row["failed"] != "0" for row in rows]), [row["id"] for row in rows]
    except LookupError as error:
        raise UserError(f"{file} is not a complete table of predictions ({reason(error)})") from error
    if len(rows) != found["n"]:
        raise UserError(f"{file} has {plural(len(rows), 'video')}, but metrics.json is about {found['n']}")
    if repeated := [one for one, other in pairwise(ids) if one == other]:
        raise UserError(f"{file}: videos share a name, so results cannot be paired: {shorten_list(repeated)}")
    right = np.array([label == said for label, said in zip(labels, predictions, strict=True)]) & ~failed
    said = ["" if bad else prediction for bad, prediction in zip(failed, predictions, strict=True)]
    return Scored(str(folder), {key: found[key] for key in PROTOCOL}, ids, labels, said, right)


def check_comparable(results: Sequence[Scored]) -> None:
    """Refuse results of different protocols, videos or labels.

    Raises:
        UserError: The results cannot be compared. The message lists all reasons.
    """
    first, problems = results[0], []
    for other in results[1:]:
        names = f"{first.name} and {other.name}"
        problems += [
            f"{names}: {key} is {first.protocol[key]} and {other.protocol[key]}"
            for key in PROTOCOL
            if first.protocol[key] != other.protocol[key]
        ]
        if different := sorted(set(first.ids) ^ set(other.ids)):
            problems.append(f"{names} are about different videos: {shorten_list(different)}")
        elif moved := [i for i, a, b in zip(first.ids, first.labels, other.labels, strict=True) if a != b]:
            problems.append(f"{names} have different labels: {shorten_list(moved)}")
    if problems:
        lines = "\n".join(f"  - {printable(problem)}" for problem in problems)
        raise UserError(f"these results cannot be compared:\n{lines}\nEvaluate both on the same videos and views")


@dataclass(frozen=True, eq=False)
class Comparison:
    """The difference between two results on the same videos.

    Attributes:
        first, second: The results.
        low, high: The 95 % interval of the difference in accuracy (bootstrap over videos).
        p: The p-value of McNemar's exact test.
    """

    first: Scored
    second: Scored
    low: float
    high: float
    p: float

    @classmethod
    def of(cls, first: Scored, second: Scored) -> "Comparison":
        change = second.right.astype(int) - first.right
        low, high = bootstrap(lambda weight_N: (weight_N * change).sum() / weight_N.sum(), np.arange(len(change)))
        return cls(
            first, second, float(low), float(high), mcnemar(int((change > 0).sum()), int((change < 0).sum()))
        )

    @property
    def difference(self) -> float:
        """The accuracy of the second result minus that of the first."""
        return float(self.second.right.mean() - self.first.right.mean())

    @property
    def gained(self) -> NDArray[np.int64]:
        """The rows that only the second result has right."""
        return np.flatnonzero(self.second.right & ~self.first.right)

    @property
    def lost(self) -> NDArray[np.int64]:
        """The rows that only the first result has right."""
        return np.flatnonzero(self.first.right & ~self.second.right)

    @property
    def verdict(self) -> str:
        """The outcome of the test in words."""
        if self.p >= SIGNIFICANT:
            return "no significant difference"
        return "the second is better" if self.difference > 0 else "the first is better"

    def by_class(self) -> list[dict[str, Any]]:
        """Return the recalls of each class, largest change first."""
        labels, found = np.array(self.first.labels), []
        for name in sorted(set(self.first.labels)):
            of = labels == name
            first, second = self.first.right[of].mean(), self.second.right[of].mean()
            gained, lost = int(of[self.gained].sum()), int(of[self.lost].sum())
            row = {"class": name, "n": int(of.sum()), "first": float(first), "second": float(second)}
            found.append(row | {"difference": float(second - first), "gained": gained, "lost": lost})
        return sorted(found, key=lambda row: -abs(row["difference"]))


def mcnemar(gained: int, lost: int) -> float:
    """Return the two-sided p-value of McNemar's exact test, a binomial test of the videos that flipped."""
    n, term, tail = gained + lost, 1, 0
    for k in range(min(gained, lost) + 1):
        tail += term
        term = term * (n - k) // (k + 1)
    return min(1.0, 2 * tail / 2**n) if n < 1000 else min(1.0, math.exp(math.log(2 * tail) - n * math.log(2)))


def compare(folders: Sequence[Path], out: Path) -> list[Comparison]:
    """Compare results, log the differences and write a page.

    Args:
        folders: Folders of runs or evaluations. Each is compared with all that come before it.
        out: Path of the page.

    Raises:
        UserError: The results cannot be compared, or `out` is another file.
    """
    if len(folders) < 2:
        raise UserError("vivit compare needs the folders of at least two results")
    check_replaceable(out)
    results = [read_result(folder) for folder in folders]
    check_comparable(results)
    comparisons = [Comparison.of(*pair) for pair in combinations(results, 2)]
    log.info("\n".join(text(results, comparisons)))
    with replacing(out) as part:
        part.write_text(page(results, comparisons), encoding="utf-8")
    log.info(f"written: {out}")
    return comparisons


def accuracy(result: Scored) -> str:
    """Return the accuracy of a result with its interval."""
    right, n = int(result.right.sum()), len(result.right)
    low, high = wilson(right, n)
    return f"{percent(right / n, 1)} ({right:,} of {n:,}, 95 % CI {100 * low:.0f} to {100 * high:.0f})"


def summary(comparison: Comparison) -> str:
    """Return the difference with its interval and the test in one line."""
    ends = f"{signed(100 * comparison.low, 1)} to {signed(100 * comparison.high, 1)}"
    flips = f"{len(comparison.gained)} gained, {len(comparison.lost)} lost"
    return (
        f"{signed(100 * comparison.difference, 1)} points (95 % CI {ends}); {flips}; McNemar's exact test "
        f"p = {comparison.p:.2g}: {comparison.verdict}"
    )


def text(results: Sequence[Scored], comparisons: Sequence[Comparison]) -> Iterator[str]:
    """Yield the lines for the terminal."""
    width = max(len(printable(result.name)) for result in results)
    for result in results:
        yield f"{printable(result.name):<{width}}  {accuracy(result)}"
    for found in comparisons:
        yield f"\n{printable(found.first.name)} -> {printable(found.second.name)}: {summary(found)}"
        changed = [row for row in found.by_class() if row["difference"]][:LISTED]
        for row in changed:
            yield (
                f"  {printable(row['class'])}: {percent(row['first'])} -> {percent(row['second'])} of {row['n']}, "
                f"{row['gained']} gained, {row['lost']} lost"
            )
        for title, rows in (("gained", found.gained), ("lost", found.lost)):
            if len(rows):
                yield f"  {title}: {shorten_list([found.first.ids[row] for row in rows], LISTED)}"
    if len(comparisons) > 1:
        yield f"\nnote     with {len(comparisons)} tests, some p-values below {SIGNIFICANT} are expected by chance"


def page(results: Sequence[Scored], comparisons: Sequence[Comparison]) -> str:
    """Return the page."""
    sections: list[Mapping[str, Any]] = [
        {
            "title": f"{found.first.name} → {found.second.name}",
            "summary": summary(found),
            "classes": found.by_class(),
            "flips": [
                {
                    "id": found.first.ids[row],
                    "label": found.first.labels[row],
                    "first": found.first.predictions[row] or "unreadable",
                    "second": found.second.predictions[row] or "unreadable",
                    "gained": bool(found.second.right[row]),
                }
                for row in (*found.gained[:SHOWN], *found.lost[:SHOWN])
            ],
            "total": len(found.gained) + len(found.lost),
        }
        for found in comparisons
    ]
    protocol = results[0].protocol
    return render(
        "compare.html",
        f"Comparison of {plural(len(results), 'result')}",
        subtitle=f"{plural(protocol['n'], 'video')} of the {protocol['split']} split, {protocol['views']} views",
        results=[(result.name, accuracy(result)) for result in results],
        sections=sections,
    )
