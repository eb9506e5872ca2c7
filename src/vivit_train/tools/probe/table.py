"""The table of `vivit probe`, and what it says about the data."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from vivit_train.utils.intervals import wilson
from vivit_train.utils.text import printable

BASELINES = (
    *("chance", "majority class", "motion", "motion in regions", "motion, tiny model"),
    *("appearance", "appearance and motion"),
)


@dataclass(frozen=True)
class Score:
    """One row of the table.

    Attributes:
        name: What is scored.
        details: The pooling and the weight decay; of several heads, one line each.
        validated: The number of training clips that are right when they are held out.
        tested: The number of test clips that are right; None if it is not measured.
    """

    name: str
    details: str
    validated: float
    tested: float | None = None


def table(rows: Sequence[Score], n_train: int, n_test: int, split: str, how: str) -> str:
    """Returns the table as text."""
    drawn = Table(title=printable(f"{how}; the head marked * is chosen by it"), title_justify="left")
    drawn.add_column("head")
    drawn.add_column("features of a frame")
    drawn.add_column(f"held out (n {n_train})", justify="right")
    drawn.add_column(f"{split} (n {n_test})", justify="right")
    for place, row in enumerate(rows):
        cells = [
            shown(row.validated, n_train),
            "" if row.tested is None else shown(row.tested, n_test),
        ]
        last_baseline = place + 1 < len(rows) and row.name.removesuffix(" *") == BASELINES[-1]
        drawn.add_row(row.name, row.details, *cells, end_section=last_baseline)
    text = io.StringIO()
    Console(file=text, width=110, color_system=None).print(drawn)
    return text.getvalue().rstrip()


def shown(right: float, total: int) -> str:
    """Formats an accuracy with its 95 % interval (Wilson)."""
    low, high = wilson(right, total)
    return f"{right / total:.3f}  ({low:.2f} to {high:.2f})"


def advice(rows: Sequence[Score], n_test: int) -> Iterator[str]:
    """Yields what the table says about the data, and what to do next."""
    tested = {row.name: row.tested for row in rows if row.tested is not None}
    best = next(row for row in rows if row.name.endswith("*"))
    right = tested.pop(best.name)
    baseline = max(tested, key=lambda name: tested[name])
    share = f"{tested[baseline] / n_test:.3f}"
    details = "; ".join(best.details.splitlines())
    yield f"chosen: {best.name.removesuffix(' *')} ({details}): {shown(right, n_test)}"
    if wilson(right, n_test)[0] <= tested["majority class"] / n_test:
        yield "this is not surely better than always answering the most frequent class"
    if tested[baseline] > right:
        yield (
            f"on the test clips, the baseline '{baseline}' is better ({share}): if they show other scenes than "
            "the training clips, what a frame looks like can mislead, and motion carries over"
        )
    yield f"the baseline to beat is '{baseline}': {share}"
