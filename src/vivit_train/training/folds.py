"""Divides training clips into folds for cross-validation, with the clips of one source in one fold."""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vivit_train.data.annotations.hold_out import order_key, source_of


def held_out_logits(
    logits_of: Callable[[list[float], Tensor], Tensor], decays: Sequence[float], fold_N: Tensor
) -> Tensor:
    """Returns the logits of each clip by the head that has not seen its fold, [decays, N, K].

    Args:
        logits_of: Fits P heads to weight decays and to weights of the clips [P, N], which are 0 for a fold that is
            held out, and returns the logits of all clips, [P, N, K].
        decays: The weight decays, each of which is tried with each fold held out.
        fold_N: The fold of each clip.
    """
    folds = int(fold_N.max()) + 1
    kept_FN = fold_N[None] != torch.arange(folds, device=fold_N.device)[:, None]
    decay_P = [decay for decay in decays for _ in range(folds)]
    logits = logits_of(decay_P, kept_FN.repeat(len(decays), 1)).unflatten(0, (len(decays), folds))
    return logits[:, fold_N, torch.arange(len(fold_N), device=fold_N.device)]


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
