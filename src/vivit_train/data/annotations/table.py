"""Which clips there are, with their labels: a table for each split."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vivit_train.utils.text import printable

StrPath = str | os.PathLike[str]
Strings = NDArray[Any]  # of numpy's StringDType
Target = NDArray[np.int64] | NDArray[np.bool]
Classes = dict[str, tuple[str, ...]]  # head -> names of its classes; "" is the head where there is only one
SEPARATOR = ";"  # of the labels of a clip, where it may have several


@dataclass(frozen=True, eq=False, slots=True)
class LabelSets:
    """Any number of classes for each clip: as large as the labels there are, not as the classes there could be.

    Attributes:
        class_ids: those of the first clip, ascending, then those of the second, ....
        ends: where each clip's end, [n].
        num_classes: that a clip could have.
    """

    class_ids: NDArray[np.int32]
    ends: NDArray[np.int64]
    num_classes: int

    @classmethod
    def of(cls, sets: Sequence[set[int]], num_classes: int) -> "LabelSets":
        class_ids = np.fromiter((class_id for one in sets for class_id in sorted(one)), np.int32)
        return cls(class_ids, np.cumsum([len(one) for one in sets], dtype=np.int64), num_classes)

    def take(self, rows: NDArray[np.int64]) -> "LabelSets":
        return self.of([set(self[row].tolist()) for row in rows], self.num_classes)

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """How many classes each clip has."""
        return np.diff(self.ends, prepend=0)

    def __getitem__(self, row: int) -> NDArray[np.int32]:
        """The classes of a clip."""
        return self.class_ids[self.ends[row - 1] if row else 0 : self.ends[row]]


@dataclass(frozen=True, eq=False, slots=True)
class ClipTable:
    """The clips of one split. Columns, not objects, so that 500,000 rows stay small and workers share them.

    Attributes:
        paths: absolute path of each clip's video, or its URL; what else it may lead to is in source.py.
        labels: classes of each, [n, heads], indices into the names in `Splits.classes`; where a clip may have any
            number of classes, `LabelSets`.
        ids: name of each in predictions: the path relative to root, the YouTube id, ....
        spans_s: start and end of each within its video in seconds, [n, 2]; None where every clip is a whole video.
    """

    paths: Strings
    labels: NDArray[np.int64] | LabelSets
    ids: Strings
    spans_s: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: NDArray[np.int64]) -> "ClipTable":
        """These rows, in this order."""
        spans_s = None if self.spans_s is None else self.spans_s[rows]
        labels = self.labels.take(rows) if isinstance(self.labels, LabelSets) else self.labels[rows]
        return ClipTable(self.paths[rows], labels, self.ids[rows], spans_s)

    @property
    def multi_label(self) -> bool:
        """Whether a clip may have any number of classes."""
        return isinstance(self.labels, LabelSets)

    def labels_of(self, row: int) -> tuple[int, ...]:
        """A clip's class in each head; or all its classes, which may be none."""
        return tuple(self.labels[row].tolist())

    def written(self, row: int, names: Sequence[str]) -> str:
        """A clip's label as data=csv has it: its class in the first head; or all its classes."""
        labels = self.labels_of(row)
        return SEPARATOR.join(names[label] for label in (labels if self.multi_label else labels[:1]))

    def target(self, row: int) -> Target:
        """What a model is to say of a clip: its class in each head, [heads]; or of each class whether the clip has
        it, [classes]."""
        if not isinstance(self.labels, LabelSets):
            return self.labels[row]
        has_K = np.zeros(self.labels.num_classes, np.bool)
        has_K[self.labels[row]] = True
        return has_K

    def class_counts(self, classes: Classes) -> list[NDArray[np.int64]]:
        """How many clips each class has, by head."""
        columns = [self.labels.class_ids] if isinstance(self.labels, LabelSets) else self.labels.T
        return [
            np.bincount(column, minlength=len(names))
            for column, names in zip(columns, classes.values(), strict=True)
        ]

    def groups(self, row: int) -> Sequence[tuple[int, ...]]:
        """What is balanced, and limited, with the clip: the labels of all heads together, as one; or each of its
        classes, of which having none is one too."""
        labels = self.labels_of(row)
        return [(label,) for label in labels] or [()] if self.multi_label else [labels]

    def label_counts(self) -> NDArray[np.int64]:
        """How many clips have each clip's labels; of several groups (see `groups`), the smallest's: [n]."""
        groups = [self.groups(row) for row in range(len(self))]
        counts = Counter(group for several in groups for group in several)
        return np.array([min(counts[group] for group in several) for several in groups], np.int64)


@dataclass(frozen=True, eq=False, slots=True)
class Splits:
    """The clips of a data set.

    Attributes:
        classes: the names by head; the position is the id.
        train: empty where the reader was told that there are no training annotations.
        test: None where there is none.
        source: where this came from, in one line.
        notices: what a person should know, such as how many videos are missing; part of `summary()`.
        missing: by split, the videos that are listed and not there.
    """

    classes: Classes
    train: ClipTable
    val: ClipTable
    test: ClipTable | None
    source: str
    notices: tuple[str, ...] = ()
    missing: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def multi_label(self) -> bool:
        """Whether a clip may have any number of classes, all of one head."""
        return self.val.multi_label

    def summary(self) -> str:
        """Source, classes, counts per split and notices, for a person to read."""
        lines = [f"source   {printable(self.source)}"]
        for head, names in self.classes.items():
            shown = names if len(names) <= 10 else (*names[:4], "...", names[-1])
            lines.append(printable(f"{head or 'classes':<8} {len(names)}: {', '.join(shown)}"))
        for name, split in (("train", self.train), ("val", self.val), ("test", self.test)):
            if split is not None:
                counts = split.class_counts(self.classes)
                spread = "; ".join(
                    f"{c.min()} to {c.max()} per {printable(head or 'class')}"
                    for head, c in zip(self.classes, counts, strict=True)
                )
                if isinstance(split.labels, LabelSets):
                    sizes = split.labels.sizes
                    spread += f"; {sizes.sum() / max(len(sizes), 1):.1f} classes per clip, "
                    spread += f"{np.count_nonzero(sizes == 0)} clips of none"
                lines.append(f"{name:<8} {len(split)} clips, {spread}")
        return "\n".join(lines + [f"note     {printable(notice)}" for notice in self.notices])
