"""Divides training clips into folds for cross-validation, with the clips of one source in one fold."""

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from vivit_train.data.annotations.hold_out import order_key, source_of


def sources(ids: Sequence[str], label_N: NDArray[np.int64], classes: Sequence[str]) -> list[str]:
    """Returns the source of each clip as far as its id tells it; otherwise, each clip is a source.

    The source is a folder below that of the class, or what is left of a name without the number of a part; see
    `source_of`. In a class whose clips all have one source, such as "clip_1" to "clip_9", this tells nothing.

    Args:
        ids: The ids of the clips, such as "running/v_g01_c02.avi".
        label_N: The class id of each clip.
        classes: The class names.
    """
    found = list(ids)
    for label in np.unique(label_N).tolist():
        rows = np.flatnonzero(label_N == label).tolist()
        for form in (partial(below_class, classes[label]), os.path.basename):
            told = [source_of(form(ids[row])) for row in rows]
            if len(set(told)) > 1:
                for row, source in zip(rows, told, strict=True):
                    found[row] = source
                break
    return found


def below_class(name: str, path: str) -> str:
    """Returns the part of a path below the folder of its class, or the whole path if there is no such folder."""
    _, folder, rest = f"/{path}".rpartition(f"/{name}/")
    return rest if folder else path


def assign_folds(groups: Sequence[str], label_N: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.int64]:
    """Returns the fold of each clip, [N]. Groups stay together, and classes are spread evenly.

    The largest groups are placed first, each in the fold that has the fewest clips of its classes.

    Args:
        groups: The group of each clip.
        label_N: The class id of each clip.
        folds: The number of folds; at most the number of groups.
        seed: The seed of the order of groups of one size.
    """
    rows_of = defaultdict(list)
    for row, group in enumerate(groups):
        rows_of[group].append(row)
    sizes = Counter(groups)
    fold_N = np.zeros(len(groups), np.int64)
    placed = np.zeros((folds, int(label_N.max()) + 1), np.int64)
    for group in sorted(rows_of, key=lambda name: (-sizes[name], order_key(seed, name))):
        labels = label_N[rows_of[group]]
        fold = min(range(folds), key=lambda f: (placed[f, labels].sum(), placed[f].sum()))
        fold_N[rows_of[group]] = fold
        np.add.at(placed[fold], labels, 1)
    return fold_N
