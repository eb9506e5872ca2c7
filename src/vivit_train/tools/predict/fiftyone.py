"""Writes predictions as JSON that FiftyOne imports: a classification or temporal detections for each video.

The layouts are those of its FiftyOneImageClassificationDataset, whose labels fit videos as well, and of its
FiftyOneTemporalDetectionDataset. Both map the absolute path of a video to its labels. Without a list of classes, a
label is the name of its class.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vivit_train.data.video.urls import is_url
from vivit_train.predictions import ACTION, Label, Prediction, best_labels
from vivit_train.segments import Segment
from vivit_train.tools.predict.output import opened
from vivit_train.utils.errors import UserError

Labels = dict[str, Any]
POSITIVE = 0.5  # A multi-label model predicts the classes above this probability.


def check_clips(spans: Sequence[object]) -> None:
    """Checks that clips are all whole videos, or all parts of videos: FiftyOne has one layout for each.

    Raises:
        UserError: They are both.
    """
    if any(spans) and not all(spans):
        raise UserError(
            "--fiftyone: a file is about whole videos or about clips of videos: predict them separately"
        )


def labels_of(predictions: Sequence[Prediction], classes: Mapping[str, Sequence[str]] | None = None) -> Labels:
    """Returns the labels by video: a classification, or a list of them for several heads or labels.

    A video that could not be read has None, which is FiftyOne's word for unlabeled. Clips of videos are temporal
    detections.

    Args:
        predictions: The predictions.
        classes: The class names by head of a multi-label model, all of which may be labels; None for others.
    """
    found: Labels = {}
    for prediction in predictions:
        video, several = address(prediction.video), classifications(prediction, classes)
        if prediction.span_s:
            span = {"timestamps": list(prediction.span_s)}
            found.setdefault(video, []).extend(one | span for one in several)
        elif prediction.failed:
            found[video] = None
        else:
            found[video] = several if classes or len(prediction.heads) > 1 else several[0]
    return found


def classifications(
    prediction: Prediction, classes: Mapping[str, Sequence[str]] | None = None
) -> list[dict[str, Any]]:
    """Returns the best label of each head, or all labels above `POSITIVE` of a multi-label model."""
    heads = prediction.heads
    if classes and not prediction.failed:
        logits_K = torch.from_numpy(prediction.logits)
        heads = best_labels(logits_K, classes, multi_label=True, top=len(logits_K))
    found = []
    for head, labels in heads.items():
        if head != ACTION:
            chosen = [label for label in labels if label.probability > POSITIVE] if classes else labels[:1]
            found += [target(label, head) for label in chosen]
    return found


def target(label: Label, head: str) -> dict[str, Any]:
    """Returns a label with its confidence, and with its head if that has a name."""
    named = {"attributes": {"head": head}} if head else {}
    return {"label": label.name, "confidence": round(label.probability, 6)} | named


def detections(segments: Sequence[Segment], frames: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """Returns the temporal detections of a video.

    Args:
        segments: The segments.
        frames: The first and the last frame of each, counted from 1.
    """
    return [
        target(Label(one.name, one.probability), one.head) | {"support": list(support)}
        for one, support in zip(segments, frames, strict=True)
    ]


def address(video: str) -> str:
    """Returns the absolute path of a video, by which FiftyOne finds it, or its URL."""
    return video if is_url(video) else os.path.abspath(video)


def write_labels(file: Path, labels: Mapping[str, Any]) -> None:
    """Writes the file; names that are not valid text become JSON's own escapes."""
    with opened(file) as part:
        part.write_text(json.dumps({"labels": labels}, indent=2) + "\n", encoding="utf-8")
