"""Holds out a part of the training clips for validation."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from vivit_train.data.annotations.files import below
from vivit_train.utils.errors import UserError

ByClass = dict[str, list[str]]  # class -> the paths of its clips
# Names of clips that are cut from one source: Kinetics and UCF101, then any name with the number of a part.
_SOURCES = (
    re.compile(r"(.{11})_\d{6}_\d{6}"),
    re.compile(r"(.+_g\d+)_c\d+"),
    re.compile(r"(.*?[^\W\d_].*?)[\W_]*(?:clip|part|seg|segment|scene|shot|chunk)?[\W_]*\d+", re.IGNORECASE),
)


def hold_out(clips: Mapping[str, Sequence[str]], root: Path, val_percent: float, seed: int) -> dict[str, ByClass]:
    """Splits the clips of each class into train and val, with at least one clip on either side.

    Args:
        clips: The paths of the clips of each class.
        root: The folder below which paths count for the order.
        val_percent: The percentage of each class to hold out.
        seed: The seed of the order.

    Raises:
        UserError: If `val_percent` does not lie between 0 and 100.
    """
    check_percent(val_percent)
    train, val = {}, {}
    for name, paths in clips.items():
        ordered = sorted(paths, key=lambda path: order_key(seed, below(root, path)))
        count = held_out_count(len(paths), val_percent)
        val[name], train[name] = sorted(ordered[:count]), sorted(ordered[count:])
    return {"train": train, "val": val}


def hold_out_sources(
    clips: Mapping[str, Sequence[str]],
    folder: Path,
    root: Path,
    val_percent: float,
    seed: int,
    alike: Iterable[Sequence[str]] = (),
) -> tuple[dict[str, ByClass], int]:
    """Splits the clips like `hold_out`, but keeps the clips of a class that come from one source on one side.

    Clips come from one source if they share a folder below that of their class, if their names differ only in the
    number of a part, or if they look alike. In a class where this tells nothing, as all clips have one name with a
    number, each clip is a source.

    Args:
        clips: The paths of the clips of each class.
        folder: The folder of the class folders.
        root: The folder below which paths count for the order.
        val_percent: The percentage of each class to hold out.
        seed: The seed of the order.
        alike: The groups of clips that look alike.

    Returns:
        The clips of both splits, and the number of classes in which the sources are known.

    Raises:
        UserError: If `val_percent` does not lie between 0 and 100.
    """
    split = hold_out(clips, root, val_percent, seed)
    told = 0
    for name, paths in clips.items():
        sources = {path: source_of(below(os.path.join(folder, name), path)) for path in paths}
        if len(set(sources.values())) < 2:  # All clips have one name with a number.
            sources = {path: below(root, path) for path in paths}
        for group in alike:
            joined = {sources[path] for path in group if path in sources}
            if len(joined) > 1:
                sources = {path: min(joined) if source in joined else source for path, source in sources.items()}
        held = _held_sources(Counter(sources.values()), held_out_count(len(paths), val_percent), seed)
        if held:
            told += 1
            split["val"][name] = sorted(path for path in paths if sources[path] in held)
            split["train"][name] = sorted(path for path in paths if sources[path] not in held)
    return split, told


def _held_sources(sizes: Mapping[str, int], wanted: int, seed: int) -> set[str]:
    """Returns the sources to hold out; none if the sources do not allow about the wanted number of clips."""
    if len(sizes) < 2 or len(sizes) == sum(sizes.values()):
        return set()
    held: set[str] = set()
    count = 0
    for source in sorted(sizes, key=lambda name: order_key(seed, name)):
        more = count + sizes[source]
        # The order is the same in each class, so a source with clips in several classes mostly stays on one side.
        if count < wanted and more <= max(2 * wanted, sum(sizes.values()) // 2):
            held.add(source)
            count = more
    return held if 2 * count >= wanted else set()


def source_of(path: str) -> str:
    """Returns the source of a clip from its path below the folder of its class: its folder, or a part of its name.

    Members of a tar count like files in a folder.
    """
    folder, name = os.path.split(path)
    if folder:
        return folder
    stem = os.path.splitext(name)[0]
    return next((match[1] for pattern in _SOURCES if (match := pattern.fullmatch(stem))), stem)


def held_out_count(clips: int, val_percent: float) -> int:
    """Returns the number of clips to hold out, which leaves at least one on either side where there are two."""
    return min(max(round(clips * val_percent / 100), 1), max(clips - 1, 0))


def check_percent(val_percent: float) -> None:
    """Raises a UserError if the percentage to hold out does not lie between 0 and 100."""
    if not 0 < val_percent < 100:
        raise UserError(f"data.reader.val_percent is {val_percent}; it must lie between 0 and 100")


def order_key(seed: int, text: str) -> bytes:
    """Returns the key by which clips are ordered before some of them are held out.

    A hash gives the same order on every machine and with every library version, and clips that are added later do
    not change the order of the others.
    """
    return hashlib.sha256(f"{seed}/{text}".encode(errors="surrogateescape")).digest()
