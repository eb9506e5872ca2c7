"""The log of unreadable videos, which all ranks share and a CSV file lists."""

import csv
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path

from vivit_train.utils import distributed
from vivit_train.utils.errors import UserError
from vivit_train.utils.files import read_table
from vivit_train.utils.text import csv_cell, printable

BadVideo = tuple[str, str]  # the path of the video, and the reason why it cannot be read


class BadVideoLog:
    """A log of the unreadable videos of each split.

    A rank adds the videos that it finds, and `share` tells the other ranks. Rank 0 appends them to the file.

    Args:
        file: The CSV file with the columns split, path and reason.
        max_fraction: The share of the training videos that may be unreadable.

    Attributes:
        known: For each split, the unreadable videos by row of the clip table. It is the same on all ranks.
        new: The unreadable videos that only this rank knows, by split and row.
    """

    def __init__(self, file: Path, max_fraction: float) -> None:
        self.file, self.max_fraction = file, max_fraction
        self.known: dict[str, dict[int, BadVideo]] = {"train": {}, "val": {}, "test": {}}
        self.new: dict[tuple[str, int], BadVideo] = {}

    def add(self, split: str, errors: Iterable[tuple[int, str, str]]) -> None:
        """Adds the "errors" of a batch (see `ClipBatch`); videos that are known already are skipped."""
        for row, path, reason in errors:
            if row not in self.known[split]:
                self.new[split, row] = (path, reason)

    def share(self) -> set[str]:
        """Tells all ranks what each of them has found, and writes it to the file. All ranks must call it together.

        If no rank has found anything, the ranks exchange a single byte between CPUs.

        Returns:
            The splits in which videos have been found since the last call.
        """
        (anything,) = distributed.any_rank(bool(self.new))
        if not anything:
            return set()
        found = [bad for new in distributed.gather(self.new) for bad in new.items()]
        self.new.clear()
        for (split, row), bad in found:
            self.known[split][row] = bad
        if distributed.rank() == 0:
            for split in self.known:
                if reasons := dict(bad for (where, _), bad in found if where == split):
                    self.write(split, reasons)
        return {split for (split, _), _ in found}

    def is_over_budget(self, num_videos: int) -> bool:
        """Returns whether more than `max_fraction` of the `num_videos` training videos are unreadable."""
        return len(self.known["train"]) > self.max_fraction * num_videos

    def error(self, num_videos: int) -> UserError:
        """Returns the error that ends a training with `num_videos` videos, too many of which are unreadable."""
        bad = self.known["train"] | {row: bad for (split, row), bad in self.new.items() if split == "train"}
        path, reason = next(iter(bad.values()))
        return UserError(
            f"{len(bad)} of {num_videos} training videos cannot be read, and "
            f"data.max_bad_fraction is {self.max_fraction:g}. The first is {printable(path)}: {reason}. "
            f"{self.file} lists all of them so far"
        )

    def write(self, split: str, reasons: Mapping[str, str]) -> None:
        """Appends unreadable videos to the file, each video once even if it has many clips.

        Args:
            split: The split that contains the videos.
            reasons: The reason why each video cannot be read, by path.
        """
        with self.file.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if not self.listed:
                writer.writerow(["split", "path", "reason"])
            for path, reason in reasons.items():
                if (split, csv_cell(path)) not in self.listed:
                    writer.writerow([split, csv_cell(path), csv_cell(reason)])
        self.listed |= {(split, csv_cell(path)) for path in reasons}

    @cached_property
    def listed(self) -> set[tuple[str, ...]]:
        """The (split, path) pairs in the file, including those from before the run was resumed."""
        if not self.file.exists():
            return set()
        return {tuple(row[:2]) for row in read_table(self.file)}
