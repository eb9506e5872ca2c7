"""Digests of all clips, a few bytes per clip, with which a resumed run finds out what has changed."""

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vivit_train.data.annotations.table import ClipTable, Splits
from vivit_train.data.video import storage, urls
from vivit_train.utils.arguments import conforms, shown
from vivit_train.utils.errors import UserError, VideoError
from vivit_train.utils.text import printable

MAX_BYTES = 1 << 28  # An unpacked digest has at most this size, which is enough for two million clips.
SHOWN = 3  # A message names this many clips for each kind of change.
Clip = tuple[str, list[float], list[int]]  # labels; start and end in seconds; size and time stamp of the file
WORDS = ("labels changed", "spans changed", "files overwritten (size or time)")


def digest(splits: Splits) -> Tensor:
    """Returns a compressed table of all clips, uint8 [bytes].

    Each file is queried once. URLs are not queried. A member of a tar has the time stamp of the tar.
    """
    states: dict[str, list[int]] = {}
    rows = [row for name, manifest in named(splits) for row in rows_of(name, manifest, splits, states)]
    packed = zlib.compress(json.dumps(rows, ensure_ascii=True, separators=(",", ":")).encode(), 3)
    return torch.from_numpy(np.frombuffer(packed, np.uint8).copy())


def named(splits: Splits) -> Iterator[tuple[str, ClipTable]]:
    """Yields the name and the clips of each split that exists."""
    for name, manifest in (("train", splits.train), ("val", splits.val), ("test", splits.test)):
        if manifest is not None:
            yield name, manifest


def rows_of(name: str, manifest: ClipTable, splits: Splits, states: dict[str, list[int]]) -> Iterator[list[Any]]:
    """Yields the digest rows of a split; `states` caches the file states by path."""
    classes = list(splits.classes.values())
    for row in range(len(manifest)):
        path = str(manifest.paths[row])
        if path not in states:
            states[path] = state_of(path)
        ids = manifest.labels_of(row)
        heads = classes * len(ids) if manifest.multi_label else classes
        labels = " | ".join(names[i] for names, i in zip(heads, ids, strict=True))
        span = [] if manifest.spans_s is None else [float(s) for s in manifest.spans_s[row]]
        yield [name, str(manifest.ids[row]), labels, span, states[path]]


def state_of(path: str) -> list[int]:
    """Returns the size and the time stamp of a file; empty for a URL or if the file cannot be queried."""
    if urls.is_url(path):
        return []
    try:
        status = os.stat(path)
        return [status.st_size, status.st_mtime_ns]
    except OSError:  # the path may be a member of a tar
        pass
    try:
        state = storage.state(path)
        return [state.size, state.version]
    except (VideoError, UserError):
        return []


def unpacked(packed: Any, where: str) -> dict[tuple[str, str], Clip]:
    """Returns the clips of a digest by split and id. The digest may come from an untrusted checkpoint.

    Args:
        packed: The digest, a uint8 tensor [bytes].
        where: The path of the checkpoint, for messages.

    Raises:
        UserError: If the digest is damaged or unpacks to more than `MAX_BYTES`.
    """
    try:
        if not isinstance(packed, Tensor) or packed.dtype != torch.uint8 or packed.ndim != 1:
            raise ValueError
        stream = zlib.decompressobj()
        text = stream.decompress(packed.numpy().tobytes(), MAX_BYTES)
        rows = json.loads(text)
        if stream.unconsumed_tail or not conforms(rows, list[tuple[str, str, str, list[float], list[int]]]):
            raise ValueError
    except (ValueError, zlib.error, RecursionError) as error:
        raise UserError(
            f"{where}: the table of clips is damaged; init.path={where} starts a new run from its weights"
        ) from error
    return {(split, clip): (labels, span, state) for split, clip, labels, span, state in rows}


def differences(before: Mapping[tuple[str, str], Clip], now: Mapping[tuple[str, str], Clip]) -> list[str]:
    """Returns a line for each kind of change, which counts the changed clips and names the first ones."""
    found = {"gone": [key for key in before if key not in now], "new": [key for key in now if key not in before]}
    both = [key for key in now if key in before]
    for i, words in enumerate(WORDS):
        found[words] = [key for key in both if before[key][i] != now[key][i]]
    if not any(found.values()) and list(before) != list(now):
        found["in another order"] = list(now)
    lines = []
    for words, keys in found.items():
        names = ", ".join(f"{split}/{printable(clip)}" for split, clip in keys[:SHOWN])
        if keys:
            lines.append(f"{words}: {len(keys):,} ({names}{', ...' if len(keys) > SHOWN else ''})")
    return lines


def check_unchanged(data: Any, stored: Any, where: str, record: os.PathLike[str], step: int) -> str:
    """Compares the clips of a resumed run with the clips in its checkpoint.

    Args:
        data: The data module. Its attribute `changed` says whether the run may resume with changed clips.
        stored: The data module's state in the checkpoint.
        where: The path of the checkpoint.
        record: The file to which accepted changes are appended.
        step: The optimizer step at which the run resumes.

    Returns:
        The message for the terminal, or "" if nothing has changed.

    Raises:
        UserError: If the clips differ and `data.changed` is "stop".
    """
    state = stored if isinstance(stored, Mapping) else {}
    if "clips" not in state:
        return f"{where} does not say which clips it was trained on, so changes in the data go undetected"
    lines = differences(unpacked(state["clips"], where), unpacked(data.digest, where))
    if not lines:
        return ""
    text = "\n  ".join([f"the data differs from what {where} was trained on:", *lines])
    if state.get("steps_per_epoch") != data.steps_per_epoch:
        before = shown(state.get("steps_per_epoch"))
        text += f"\n  an epoch has {data.steps_per_epoch} steps now and had {before} before"
    if data.changed != "accept":
        raise UserError(
            f"{text}\ndata.changed=accept resumes with the data as it is now; init.path={where} starts a new run "
            "from its weights"
        )
    with open(record, "a", encoding="utf-8") as file:
        file.write(f"after step {step}, data.changed=accept: {text}\n")
    return f"{text}\ndata.changed=accept: the run resumes with the changed data; {record} records the changes"
