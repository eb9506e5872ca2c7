"""Tables of clips and their labels, one per split."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vivit_train.utils.text import plural, printable

StrPath = str | os.PathLike[str]
Strings = NDArray[Any]  # an array of numpy's StringDType
Target = NDArray[np.int64] | NDArray[np.bool]
Classes = dict[str, tuple[str, ...]]  # head -> names of its classes; a single head is called ""
SEPARATOR = ";"  # separates the labels of a multi-label clip


@dataclass(frozen=True, eq=False, slots=True)
class LabelSets:
    """A sparse table of multi-label targets, whose size is the number of labels rather than clips times classes.

    Attributes:
        class_ids: The class ids of all clips, one clip after the other, in ascending order within each clip.
        ends: The position in `class_ids` after the last class of each clip, [n].
        num_classes: The total number of classes.
    """

    class_ids: NDArray[np.int32]
    ends: NDArray[np.int64]
    num_classes: int

    @classmethod
    def of(cls, sets: Sequence[set[int]], num_classes: int) -> "LabelSets":
        """Builds the table from the set of class ids of each clip."""
        class_ids = np.fromiter((class_id for one in sets for class_id in sorted(one)), np.int32)
        return cls(class_ids, np.cumsum([len(one) for one in sets], dtype=np.int64), num_classes)

    def select(self, rows: NDArray[np.int64]) -> "LabelSets":
        """Returns a table of these rows, in this order."""
        return self.of([set(self[row].tolist()) for row in rows], self.num_classes)

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """The number of classes of each clip, [n]."""
        return np.diff(self.ends, prepend=0)

    def __getitem__(self, row: int) -> NDArray[np.int32]:
        """Returns the class ids of a clip."""
        return self.class_ids[self.ends[row - 1] if row else 0 : self.ends[row]]


@dataclass(frozen=True, eq=False, slots=True)
class ClipTable:
    """A table of the clips of one split. Columns keep 500,000 rows small and let workers share them.

    Attributes:
        paths: The absolute path or the URL of each clip's video, [n]. See storage.py for all supported paths.
        labels: The class ids of each clip, [n, heads], as indices into `Splits.classes`; `LabelSets` for
            multi-label data.
        ids: The name of each clip in predictions, [n], for example the path relative to root or the YouTube id.
        spans_s: The start and the end of each clip within its video in seconds, [n, 2]; None if every clip is a
            whole video.
        lists: The folder and the annotation file of each list of data=csv that the clips come from.
    """

    paths: Strings
    labels: NDArray[np.int64] | LabelSets
    ids: Strings
    spans_s: NDArray[np.float64] | None = None
    lists: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: NDArray[np.int64]) -> "ClipTable":
        """Returns a table of these rows, in this order."""
        spans_s = None if self.spans_s is None else self.spans_s[rows]
        labels = self.labels.select(rows) if isinstance(self.labels, LabelSets) else self.labels[rows]
        return ClipTable(self.paths[rows], labels, self.ids[rows], spans_s, self.lists)

    def without_labels(self) -> "ClipTable":
        """Returns the same clips without labels."""
        return replace(self, labels=np.empty((len(self), 0), np.int64))

    @property
    def multi_label(self) -> bool:
        """Whether the data is multi-label, so that a clip may have any number of classes."""
        return isinstance(self.labels, LabelSets)

    def labels_of(self, row: int) -> tuple[int, ...]:
        """Returns the class id of a clip in each head or, for multi-label data, all its class ids."""
        return tuple(self.labels[row].tolist())

    def label_string(self, row: int, names: Sequence[str]) -> str:
        """Returns the label of a clip in the format of data=csv: its first head's class, or all its classes."""
        labels = self.labels_of(row)
        return SEPARATOR.join(names[label] for label in (labels if self.multi_label else labels[:1]))

    def target(self, row: int) -> Target:
        """Returns the target of a clip: class ids, int64 [heads], or for multi-label data, bool [classes]."""
        if not isinstance(self.labels, LabelSets):
            return self.labels[row]
        has_K = np.zeros(self.labels.num_classes, np.bool)
        has_K[self.labels[row]] = True
        return has_K

    @property
    def targets(self) -> Target:
        """The targets of all clips: class ids, [n, heads], or for multi-label data, bool [n, classes]."""
        if not isinstance(self.labels, LabelSets):
            return self.labels
        return np.array([self.target(row) for row in range(len(self))], np.bool)

    def class_counts(self, classes: Classes) -> list[NDArray[np.int64]]:
        """Returns the number of clips of each class, [classes] per head."""
        columns = [self.labels.class_ids] if isinstance(self.labels, LabelSets) else self.labels.T
        return [
            np.bincount(column, minlength=len(names))
            for column, names in zip(columns, classes.values(), strict=True)
        ]

    def balance_groups(self, row: int) -> Sequence[tuple[int, ...]]:
        """Returns the groups of a clip, for balancing and limiting classes.

        With heads, the group is the combination of the labels of all heads. With multi-label data, each class is a
        group, and clips without a class form a group of their own.
        """
        labels = self.labels_of(row)
        return [(label,) for label in labels] or [()] if self.multi_label else [labels]

    def label_counts(self) -> NDArray[np.int64]:
        """Returns the size of each clip's smallest group, [n]; see `balance_groups`."""
        groups = [self.balance_groups(row) for row in range(len(self))]
        counts = Counter(group for several in groups for group in several)
        return np.array([min(counts[group] for group in several) for several in groups], np.int64)


@dataclass(frozen=True, eq=False, slots=True)
class Splits:
    """The splits of a data set.

    Attributes:
        classes: The class names of each head. The position of a name is the class id.
        train: The training clips. The table is empty if there are no training annotations.
        val: The validation clips.
        test: The test clips, or None if there is no test split.
        source: The origin of the data in one line.
        notices: Messages for the user, for example the number of missing videos. They are part of `summary()`.
        missing: The paths of the videos in each split that are listed but do not exist.
        read_as: What the reader has decided about the form of the annotation files, in one line.
    """

    classes: Classes
    train: ClipTable
    val: ClipTable
    test: ClipTable | None
    source: str
    notices: tuple[str, ...] = ()
    missing: Mapping[str, Sequence[str]] = field(default_factory=dict)
    read_as: str = ""

    def without_labels(self) -> "Splits":
        """Returns the same clips without classes and labels."""
        test = None if self.test is None else self.test.without_labels()
        return replace(
            self, classes={}, train=self.train.without_labels(), val=self.val.without_labels(), test=test
        )

    @property
    def multi_label(self) -> bool:
        """Whether the data is multi-label, with a single head."""
        return self.val.multi_label

    @property
    def class_counts(self) -> dict[str, list[int]]:
        """The number of training clips of each class by head."""
        counts = self.train.class_counts(self.classes)
        return {head: of_head.tolist() for head, of_head in zip(self.classes, counts, strict=True)}

    @property
    def val_is_test(self) -> bool:
        """Whether the test clips are validation clips, on which checkpoints are chosen."""
        return self.test is not None and set(self.test.paths.tolist()) <= set(self.val.paths.tolist())

    def summary(self) -> str:
        """Returns a readable summary of the source, the classes, the counts per split and the notices."""
        lines = [f"source   {printable(self.source)}"]
        if self.read_as:
            lines.append(f"read as  {printable(self.read_as)}")
        for head, names in self.classes.items():
            shown = names if len(names) <= 10 else (*names[:4], "...", names[-1])
            lines.append(printable(f"{head or 'classes':<8} {len(names)}: {', '.join(shown)}"))
        for name, split in (("train", self.train), ("val", self.val), ("test", self.test)):
            if split is not None:
                counts = split.class_counts(self.classes)
                ranges = [str(c.min()) if c.min() == c.max() else f"{c.min()} to {c.max()}" for c in counts]
                spread = "; ".join(
                    f"{shown} per {printable(head or 'class')}"
                    for head, shown in zip(self.classes, ranges, strict=True)
                )
                if isinstance(split.labels, LabelSets):
                    sizes = split.labels.sizes
                    spread += f"; {sizes.sum() / max(len(sizes), 1):.1f} classes per clip, "
                    spread += f"{plural(int(np.count_nonzero(sizes == 0)), 'clip')} without a label"
                lines.append(", ".join(filter(None, [f"{name:<8} {plural(len(split), 'clip')}", spread])))
        return "\n".join(lines + [f"note     {printable(notice)}" for notice in self.notices])
