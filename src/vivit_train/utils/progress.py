"""The progress of long work on stderr: a bar with an ETA on a terminal, otherwise a line every half minute."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

LINE_EVERY_S = 30.0
Step = Callable[[float, str], None]
Item = TypeVar("Item")


@contextmanager
def progress(what: str, total: float, unit: str = "") -> Iterator[Step]:
    """Shows the progress of work inside this context.

    Args:
        what: What is done, such as "predicting". It must be printable.
        total: The amount of work.
        unit: The unit of the amount, for the lines; without one, they state the share that is done.

    Yields:
        A function to call with the amount that is done by now, and a note such as "1 failed".
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    live = sys.stderr.isatty()
    start_s = said_s = time.monotonic()

    def step(done: float, note: str) -> None:
        nonlocal said_s
        bar.update(task, completed=done, note=note)
        now_s = time.monotonic()
        if not live and done and now_s - said_s > LINE_EVERY_S:
            said_s = now_s
            left_min = (now_s - start_s) / 60 * max(total - done, 0) / done
            amount = f"{done:,.0f} of {total:,.0f}{unit}" if unit else f"{done / total:.0%}"
            words = [f"{what}: {amount}", note, f"{left_min:.0f} min left"]
            sys.stderr.write(", ".join(filter(None, words)) + "\n")

    columns = [TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn()]
    columns += [TimeRemainingColumn(), TextColumn("{task.fields[note]}", markup=False)]
    with Progress(*columns, console=Console(stderr=True), disable=not live, transient=True) as bar:
        task = bar.add_task(what, total=total, note="")
        yield step


def tracked(items: Iterable[Item], what: str, total: int) -> Iterator[Item]:
    """Yields the items, and shows how many of them the caller has done; see `progress`."""
    with progress(what, total) as step:
        for done, item in enumerate(items, 1):
            yield item
            step(done, "")
