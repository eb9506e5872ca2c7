"""Computes the embeddings of videos in batches and writes a file; a killed run goes on where it stopped."""

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vivit_train.models.embeddings import Level
from vivit_train.predictions import Prediction
from vivit_train.tools.features.file import Array, Contents, check_ending, write_features
from vivit_train.tools.predict.output import check_free, report_failures
from vivit_train.tools.predict.run import WHOLE
from vivit_train.tools.predict.sources import Clip
from vivit_train.training.evaluation import parse_views
from vivit_train.training.features import (
    FeatureStore,
    StoredClip,
    describe_model,
    preprocessing,
    store_in_shards,
    stored_clips,
)
from vivit_train.utils.errors import UserError
from vivit_train.utils.text import plural, printable
from vivit_train.video_model import VideoModel, clip_table

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """What is embedded, and where it is written.

    Attributes:
        out: The file; its ending is the format.
        level: See `embeddings`.
        views: The temporal clips x spatial crops of each video, such as "4x3".
        half: Whether to store float16.
        overwrite: Whether an existing file may be replaced.
    """

    out: Path
    level: Level = "clip"
    views: str = "1x1"
    half: bool = False
    overwrite: bool = False

    @property
    def parts(self) -> Path:
        """The folder that holds the embeddings until all are computed."""
        return self.out.with_name(f"{self.out.name}.parts")

    def check(self) -> None:
        """Checks before any work that the file can be written, and that the views fit the level.

        Raises:
            UserError: They cannot.
        """
        check_ending(self.out)
        check_free([self.out], self.overwrite)
        _, crops = parse_views(self.views, "--views ")
        if self.level == "token" and crops > 1:
            raise UserError(f"--views {self.views}: tokens of {crops} crops show different places: set Nx1")


def write_embeddings(
    source: Callable[[], VideoModel], checkpoint: str, clips: Sequence[Clip], wanted: Wanted, **loading: Any
) -> bool:
    """Embeds the clips, writes the file, and lists the videos that failed, which the file leaves out.

    Args:
        source: A function that returns the model.
        checkpoint: The name of the model, which the file states.
        clips: The clips.
        wanted: What is embedded, and where it is written.
        loading: Arguments of `VideoModel.batches`.

    Returns:
        Whether all videos could be read.

    Raises:
        UserError: No video could be read, the file cannot be written, or Ctrl-C interrupts the work.
    """
    wanted.check()
    model = source()
    spans_s = [clip.span_s or WHOLE for clip in clips] if any(clip.span_s for clip in clips) else None
    table = clip_table([clip.path for clip in clips], spans_s)
    about = description(model, wanted)
    store, names = FeatureStore(wanted.parts, about), stored_clips(table, wanted.views)
    todo = set(store.missing(names))
    if known := len(clips) - len(todo):
        log.info(f"going on: {known:,} of {plural(len(clips), 'clip')} are in {printable(str(wanted.parts))}")
    failures: dict[int, str] = {}
    batches = model.batches(table, views=wanted.views, rows=todo, **loading)
    store_in_shards(store, computed(model, wanted, names, batches, failures), len(todo), "embedding")
    rows = [row for row, name in enumerate(names) if store.has(name)]
    if failures:
        found = [Prediction(clips[row].path, error=why, span_s=clips[row].span_s) for row, why in failures.items()]
        report_failures(found, len(clips))
    if not rows:
        raise UserError(f"no video could be read, so {wanted.out} is not written")
    shape = write_file(
        store, [names[row] for row in rows], table, rows, about | {"checkpoint": checkpoint}, wanted
    )
    shutil.rmtree(store.folder)
    if not any(wanted.parts.iterdir()):
        wanted.parts.rmdir()
    log.info(f"written: {printable(str(wanted.out))}, {wanted.level} embeddings {list(shape)}")
    return not failures


def description(model: VideoModel, wanted: Wanted) -> dict[str, Any]:
    """Returns what the embeddings depend on, apart from the clips."""
    return {
        "level": wanted.level,
        "views": wanted.views,
        "type": "float16" if wanted.half else "float32",
        **describe_model(
            model.task, model.task.net, precision="bf16" if model.device.type == "cuda" else "float32"
        ),
        "preprocessing": preprocessing(model.data_for(clip_table([]), views=wanted.views)),
    }


def computed(
    model: VideoModel, wanted: Wanted, names: Sequence[StoredClip], batches: Any, failures: dict[int, str]
) -> Iterator[tuple[list[StoredClip], dict[str, Tensor], int]]:
    """Yields the embeddings of batches of clips, and the number of those that cannot be read.

    Args:
        model: The model.
        wanted: What is embedded.
        names: What identifies each clip.
        batches: The batches, from `VideoModel.batches`.
        failures: The reasons why clips cannot be read, by row; they are added.
    """
    kind = torch.float16 if wanted.half else torch.float32
    for batch in batches:
        errors = {row: why for row, _, why in batch["errors"]}
        failures |= errors
        rows = batch["index"].tolist()
        kept = [place for place, row in enumerate(rows) if row not in errors]
        if not kept:
            yield [], {}, len(errors)
            continue
        found_B = model.embed_views(batch["video"], parse_views(wanted.views), wanted.level).to(kind)
        yield [names[rows[place]] for place in kept], {"features": found_B[kept]}, len(errors)


def write_file(
    store: FeatureStore,
    names: Sequence[StoredClip],
    table: Any,
    rows: Sequence[int],
    about: dict[str, Any],
    wanted: Wanted,
) -> tuple[int, ...]:
    """Writes the file from the store, one of its files after the other, and returns the shape of the features."""

    def chunks() -> Iterator[Array]:
        for _, some in groupby(names, key=lambda name: store.places[name.name][0]):
            yield store.load(list(some))["features"].numpy()

    one = store.load(names[:1])["features"]
    shape = (len(names), *one.shape[1:])
    spans_s = None if table.spans_s is None else table.spans_s[np.array(rows)]
    contents = Contents([str(table.paths[row]) for row in rows], spans_s, about)
    write_features(wanted.out, shape, about["type"], chunks(), contents)
    return shape
