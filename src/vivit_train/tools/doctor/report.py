"""Write the doctor's report as one HTML page: a summary, what to do, and examples of each kind of problem."""

import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.image import imsave
from numpy.typing import NDArray

from vivit_train.data.annotations.table import ClipTable, Splits
from vivit_train.data.video.storage import is_plain
from vivit_train.tools.doctor.inspect_files import FileReport, strip
from vivit_train.tools.doctor.problems import BAD, COPIES, KINDS, TO_ENCODE, Problem
from vivit_train.utils.page import data_url, render
from vivit_train.utils.process_pool import Failure, run_isolated
from vivit_train.utils.text import plural

SHOWN = 8  # The report shows at most this many videos of each kind of problem.
BARS = 30  # Bars of a histogram.
Counts = Mapping[str, int]


def strips_of(problems: Sequence[Problem], workers: int, timeout_s: float) -> dict[str, NDArray[np.uint8]]:
    """Return film strips of the readable videos that the report shows, as uint8 RGB [H, W, 3] by path."""
    shown = [problem for kind in KINDS for problem in [p for p in problems if p.kind == kind][:SHOWN]]
    paths = dict.fromkeys((path for p in shown for path in (p.path, p.other) if path), timeout_s)
    with closing(run_isolated(strip, paths, workers)) as results:
        return {path: result for path, result in results if not isinstance(result, Failure)}


def report(
    title: str,
    splits: Splits,
    manifests: Mapping[str, ClipTable],
    entries: Mapping[str, FileReport],
    problems: Sequence[Problem],
    strips: Mapping[str, NDArray[np.uint8]],
    notes: Sequence[str],
    advice: str = "",
    prepare: str = "",
) -> str:
    """Return the HTML page.

    Args:
        title: Name of the dataset.
        splits: Splits of the dataset.
        manifests: Clips of each split.
        entries: Reports on the files by path.
        problems: Problems, sorted by kind.
        strips: Film strips by path, from `strips_of`.
        notes: Remarks about the dataset as a whole.
        advice: How to train on the clean lists: a sentence and, on further lines, a command.
        prepare: The command that re-encodes the files that are slow or ambiguous to read.
    """
    counts = Counter(problem.kind for problem in problems)
    labels, folder = labels_of(problems, splits, manifests), common_folder(entries)
    kinds = [
        {
            "name": kind,
            "count": counts[kind],
            "meaning": meaning,
            "effect": "left out" if kind in BAD else "left out of training" if kind in COPIES else "",
            "problems": [
                {
                    "split": problem.split,
                    "label": labels.get(problem.path, ""),
                    "detail": problem.detail.replace(folder, "") if folder else problem.detail,
                    "videos": [video(path, folder, strips) for path in (problem.path, problem.other) if path],
                }
                for problem in [p for p in problems if p.kind == kind][:SHOWN]
            ],
        }
        for kind, meaning in KINDS.items()
        if counts[kind]
    ]
    return render(
        "doctor.html",
        f"{title}: {plural(len(entries), 'file')}",
        source=splits.source,
        tiles=tiles(manifests, entries, problems),
        actions=actions(counts, advice, prepare),
        notes=[*splits.notices, *notes],
        kinds=kinds,
        histograms=histograms(entries),
        class_counts=class_counts(splits, manifests),
    )


def tiles(
    manifests: Mapping[str, ClipTable], entries: Mapping[str, FileReport], problems: Sequence[Problem]
) -> list[dict[str, str]]:
    """Return the main numbers: clips per split, unusable files, copies, and files to re-encode."""
    splits = ", ".join(f"{split} {len(manifest):,}" for split, manifest in manifests.items())
    found = [{"name": "clips", "value": f"{sum(map(len, manifests.values())):,}", "detail": splits}]
    for name, kinds, detail in (
        ("unusable files", tuple(BAD), f"of {len(entries):,}; left out of all clean lists"),
        ("copies", tuple(COPIES), "same content twice; left out of the clean training list"),
        ("to re-encode", TO_ENCODE, "slow or ambiguous files"),
    ):
        count = len({problem.path for problem in problems if problem.kind in kinds})
        found.append({"name": name, "value": f"{count:,}", "detail": detail if count else "none"})
    return found


def actions(counts: Counts, advice: str, prepare: str) -> list[tuple[str, str]]:
    """Return what to do, the most important first, as pairs of a text and a command or ""."""

    def total(*kinds: str) -> int:
        return sum(counts.get(kind, 0) for kind in kinds)

    kinds = ", ".join(f"{kind} {counts[kind]:,}" for kind in BAD if counts.get(kind))
    texts = [
        (total(*BAD), "unusable: repair or download again, or do without: " + kinds),
        (total("shared"), "in two splits: scores would be too good, so train on the clean lists"),
        (total("duplicate"), "twice in one split: if the labels differ, one of them is wrong"),
        (total("similar, shared"), "similar to one in another split: compare them by eye below"),
        (total("short"), "with fewer frames than the model sees: lower data.frames or data.stride"),
    ]
    found = [(f"{plural(count, 'clip')} {text}.", "") for count, text in texts if count]
    if total(*TO_ENCODE):
        text = "Re-encode the files that are slow or ambiguous to read, and use the copies from then on."
        found.append((text, prepare))
    text, _, command = advice.partition("\n")
    if text:
        text = f"to use the files as they are, {text}" if command and total(*TO_ENCODE) else text
        found.append((text[0].upper() + text[1:], command.strip()))
    return found


def labels_of(problems: Sequence[Problem], splits: Splits, manifests: Mapping[str, ClipTable]) -> dict[str, str]:
    """Return the classes of the videos with problems, by path."""
    wanted, (names, *_) = {problem.path for problem in problems}, splits.classes.values()
    return {
        path: manifest.label_string(row, names)
        for manifest in manifests.values()
        for row, path in enumerate(manifest.paths.tolist())
        if path in wanted
    }


def common_folder(entries: Mapping[str, FileReport]) -> str:
    """Return the folder that contains all files, with a separator at its end; "" if there is none."""
    paths = [path for path in entries if os.path.isabs(path)]
    return os.path.join(os.path.commonpath(map(os.path.dirname, paths)), "") if paths else ""


def video(path: str, folder: str, strips: Mapping[str, NDArray[np.uint8]]) -> dict[str, str]:
    """Return what the page shows of a video: its path in `folder`, a link to the file, and its film strip."""
    link = Path(path).as_uri() if is_plain(path) and Path(path).is_absolute() else ""
    return {
        "name": path.removeprefix(folder),
        "link": link,
        "strip": picture(strips[path]) if path in strips else "",
    }


def picture(pixels: NDArray[np.uint8]) -> str:
    """Return a picture as the address of an image, which contains it."""
    buffer = io.BytesIO()
    imsave(buffer, pixels, format="png")
    return data_url("png", buffer.getvalue())


def histograms(entries: Mapping[str, FileReport]) -> list[dict[str, Any]]:
    """Return the histograms of the properties of the readable files."""
    good = [entry for entry in entries.values() if entry.kind not in BAD]
    columns: dict[str, list[float]] = {
        "short side, pixels": [min(entry.width, entry.height) for entry in good],
        "width / height": [entry.width / entry.height for entry in good],
        "frames per second": [entry.fps for entry in good],
        "seconds": [entry.seconds for entry in good],
        "frames": [entry.num_frames for entry in good],
        "GOP size, frames": [entry.gop for entry in good],
        "decode time per clip, ms": [entry.decode_ms for entry in good],
    }
    return [histogram(name, values) for name, values in columns.items() if values]


def histogram(title: str, values: Sequence[float]) -> dict[str, Any]:
    """Return the bars of a histogram as shares of the tallest one, and the labels of its axis."""
    counts, _ = np.histogram(values, bins=BARS)
    low, median, high = (f"{value:.4g}" for value in np.quantile(values, (0, 0.5, 1)))
    return {
        "title": title,
        "heights": (counts / counts.max()).tolist(),
        "low": low,
        "median": median,
        "high": high,
    }


def class_counts(splits: Splits, manifests: Mapping[str, ClipTable]) -> list[dict[str, Any]]:
    """Return a table for each head: the number of clips of each class in each split."""
    by_split = [manifest.class_counts(splits.classes) for manifest in manifests.values()]
    found = []
    for i, (head, names) in enumerate(splits.classes.items()):
        columns = [counts[i].tolist() for counts in by_split]
        found.append(
            {
                "title": f"Clips per {head or 'class'}",
                "heading": head or "class",
                "splits": list(manifests),
                "rows": list(zip(names, zip(*columns, strict=True), strict=True)),
                "largest": [max(column, default=0) or 1 for column in columns],
            }
        )
    return found
