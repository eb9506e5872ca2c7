"""report.html: one page that shows what a model does well and where it fails."""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vivit_train.data.datamodule import VideoDataModule
from vivit_train.training.answers import Answers, chance, hardest_first
from vivit_train.training.findings import confidently_wrong, findings, tiles
from vivit_train.training.result import Result, defined
from vivit_train.training.statistics import calibration, confused, views_accuracy
from vivit_train.training.thumbnails import thumbnails
from vivit_train.utils.errors import UserError
from vivit_train.utils.files import read_table
from vivit_train.utils.page import render
from vivit_train.utils.plots import ACCURACY
from vivit_train.utils.text import plural

log = logging.getLogger(__name__)
SHOWN = 12  # videos in each group
PAIRS = 15  # pairs of classes that are confused
FAILURES = 100  # unreadable videos that are listed


def write_report(
    path: Path, result: Result, contents: Mapping[str, Any], data: VideoDataModule, model: str
) -> None:
    """Writes the page.

    Args:
        path: The output file.
        result: The result.
        contents: The contents of metrics.json.
        data: The data module, which reads the videos for the thumbnails.
        model: The model in a few words.
    """
    failed = np.flatnonzero(result.rows["failed"])[:FAILURES]
    known, ids = data.bad_videos.known[data.test_split], data.manifest_of(data.test_split).ids
    failures = [(ids[row], known[row][1] if row in known else "") for row in result.rows["index"][failed].tolist()]
    heads = [head_section(head, contents) for head in result.heads]
    parts = {
        "curves": learning_curves(Path(contents["checkpoint"]), data),
        "views": views_data(result),
        "heads": [head_data(head) for head in result.heads],
    }
    order = "" if contents["order"] == "forward" else f", frames {contents['order']}"
    page = render(
        "report.html",
        f"{Path(contents['checkpoint']).name} on {data.name}, {contents['split']} split",
        charts=defined(parts),
        subtitle=f"{model}; {plural(contents['n'], 'video')}, {contents['views']} views{order}",
        tiles=tiles(result),
        findings=findings(result),
        notes=notes(contents),
        facts=protocol(contents, data, model),
        heads=heads,
        multi_label=result.multi_label,
        videos=list(video_groups(result, data)),
        failures=failures,
        failed=contents["failed"],
    )
    path.write_text(page, encoding="utf-8")


def notes(contents: Mapping[str, Any]) -> list[str]:
    """Returns what a reader must know before believing the numbers."""
    found = []
    if contents.get("checkpoint_chosen_on_these_clips"):
        found.append(
            "The best checkpoint was chosen on these very clips, so the result is optimistic. Only videos that no "
            "choice depends on, a test split, give an unbiased figure."
        )
    if contents["failed"]:
        found.append(f"{plural(contents['failed'], 'video')} could not be read and counted as wrong.")
    return found


def protocol(contents: Mapping[str, Any], data: VideoDataModule, model: str) -> list[tuple[str, str]]:
    """Returns the settings that the result depends on, as pairs of a name and a value."""
    clip, (clips, crops) = data.sampling, data.protocol.views
    step = f"stride {clip.stride}" if clip.fps is None else f"{clip.fps:g} frames per second"
    if clip.kind == "segments":
        step = "one from each equal part of the video"
    return [
        ("Checkpoint", contents["checkpoint"]),
        ("Model", model),
        ("Data", f"{data.name}, {contents['split']} split: {data.splits.source}"),
        ("Clip", f"{clip.frames} frames, {step}, {data.crop}x{data.crop} pixels, order: {contents['order']}"),
        ("Views", f"{plural(clips, 'clip')} in time x {plural(crops, 'crop')}, logits averaged"),
        ("Videos", f"{contents['n']:,}, of which {contents['failed']:,} could not be read (counted as wrong)"),
        ("Intervals", "95 %: Wilson's, or where clips share a video, and for means, a bootstrap over videos"),
        *contents.get("protocol", {}).items(),
        ("Loss", "undefined" if contents["loss"] is None else f"{contents['loss']:.4f}"),
        ("Time", f"{contents['seconds']:.1f} s"),
    ]


def head_section(head: Answers, contents: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the texts and the table rows of one head."""
    counts = head.has.sum(0)
    pairs = [] if head.multi_label else confused(head, PAIRS)
    found = calibration(head)
    text = "There are no answers."
    if not math.isnan(found.error):
        text = (
            f"The expected calibration error is {found.error:.3f}: the mean distance of confidence and accuracy."
        )
    return {
        "name": head.head,
        "rows": [row for row in contents["per_class"] if row.get("head", "") == head.head],
        "pairs": [
            {
                "true": true,
                "predicted": predicted,
                "names": (head.classes[true], head.classes[predicted]),
                "count": count,
                "share": count / counts[true],
            }
            for count, true, predicted in pairs
        ],
        "calibration_text": text,
    }


def head_data(head: Answers) -> dict[str, Any]:
    """Returns the data of the charts of one head; the confusion matrix as (true, predicted or -1, count)."""
    found = {name: np.asarray(value).tolist() for name, value in calibration(head)._asdict().items()}
    part = {"classes": list(head.classes), "calibration": found}
    if not head.multi_label:
        pairs, counts = np.unique(np.stack([head.labels, head.predictions]), axis=1, return_counts=True)
        part["confusion"] = np.vstack([pairs, counts]).T.tolist()
    return part


def views_data(result: Result) -> dict[str, Any] | None:
    """Returns the accuracy by number of views, or None for a single view."""
    accuracy, low, high = views_accuracy(result.rows)
    return {"accuracy": list(accuracy), "low": list(low), "high": list(high)} if len(accuracy) > 1 else None


def learning_curves(ckpt_path: Path, data: VideoDataModule) -> dict[str, Any] | None:
    """Returns losses and validation accuracy by epoch from the metrics.csv of the checkpoint's run.

    It is None if there is no such file, or only one epoch in it.
    """
    folders = (ckpt_path.parent.parent, ckpt_path.parent)
    file = next((folder / "metrics.csv" for folder in folders if (folder / "metrics.csv").is_file()), None)
    by_epoch: dict[int, dict[str, float]] = {}
    try:
        header, *lines = (read_table(file, errors="replace") if file else []) or [[]]
    except UserError as error:
        log.warning(f"the report is without learning curves: {error}")
        return None
    for epoch, name, value in logged(dict(zip(header, line, strict=False)) for line in lines):
        by_epoch.setdefault(epoch, {})[name] = value
    if len(by_epoch) < 2:
        return None
    epochs = sorted(by_epoch)

    def series(names: Mapping[str, str]) -> dict[str, list[float | None]]:
        found = {label: [by_epoch[e].get(name) for e in epochs] for name, label in names.items()}
        return {label: values for label, values in found.items() if any(v is not None for v in values)}

    scored = {e: row["val/score"] for e, row in by_epoch.items() if "val/score" in row}
    best = max(sorted(scored), key=lambda e: scored[e]) if scored else None
    # Other data than those of the training say nothing about its validation split.
    val = data.splits.val if len(data.splits.train) else None
    return {
        "epoch": [epoch + 1 for epoch in epochs],
        "accuracy": series(ACCURACY),
        "loss": series({"train/loss_epoch": "training", "val/loss": "validation"}),
        "best": None if best is None else {"epoch": best + 1, "score": scored[best]},
        "chance": chance(val.targets) if val else None,
    }


def logged(rows: Iterable[Mapping[str, str]]) -> Iterator[tuple[int, str, float]]:
    """Yields (epoch, name, value) for each number in the rows of a metrics.csv, whatever else is in it."""
    for row in rows:
        for name, text in row.items():
            try:
                epoch, value = int(row["epoch"]), float(text)
            except (KeyError, ValueError):
                continue
            if math.isfinite(value):
                yield epoch, name, value


def video_groups(result: Result, data: VideoDataModule) -> Iterator[dict[str, Any]]:
    """Yields the confidently wrong and the hardest other videos, with thumbnails and the most probable classes."""
    wrong = confidently_wrong(result)[:SHOWN]
    readable = [row for row in hardest_first(result.heads) if not result.rows["failed"][row]]
    hard = [row for row in readable if row not in wrong][:SHOWN]
    index = result.rows["index"]
    pictures = thumbnails(data, [int(index[row]) for row in (*wrong, *hard)])
    for name, title, hint, rows in (
        ("Confidently wrong", "Most confidently wrong", WRONG_HINT, wrong),
        ("Hardest", "Hardest videos", HARD_HINT, hard),
    ):
        if len(rows):
            cards = [video_card(result, int(row), data, pictures) for row in rows]
            yield {"short": name, "title": title, "hint": hint, "cards": cards}


WRONG_HINT = (
    "The model is wrong here, and surer than of its other mistakes. Look for wrong labels, for clips that show "
    "two classes, and for what the predicted class has in common with them. The pictures show what the model "
    "sees: one view of each video."
)
HARD_HINT = "After those above, these true classes got the lowest probability (the highest loss)."


def video_card(result: Result, row: int, data: VideoDataModule, pictures: Mapping[int, str]) -> dict[str, Any]:
    """Returns what the page shows of one video."""
    index = int(result.rows["index"][row])
    return {
        "id": data.manifest_of(data.test_split).ids[index],
        "image": pictures.get(index),
        "answers": [
            {
                "head": head.head,
                "label": ", ".join(name for name, has in zip(head.classes, head.has[row], strict=True) if has)
                or "no class",
                "best": [(head.classes[k], p, bool(head.has[row, k])) for k, p in head.best(row)],
            }
            for head in result.heads
        ],
    }
