"""Finds the clips that are nearest to a video by the cosine similarity of their embeddings."""

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import typer
from numpy.typing import NDArray

from vivit_train.data.annotations.table import Splits
from vivit_train.data.datamodule import VideoDataModule
from vivit_train.data.dataset import EvalProtocol
from vivit_train.predictions import Prediction
from vivit_train.tools.features.file import Array, StoredFeatures, read_features
from vivit_train.tools.predict.output import clip_name, opened
from vivit_train.training.evaluation import parse_views
from vivit_train.training.features import weights_digest
from vivit_train.training.thumbnails import FRAMES, SIDE, thumbnails
from vivit_train.utils.errors import UserError
from vivit_train.utils.page import check_replaceable, render
from vivit_train.utils.text import plural, printable
from vivit_train.video_model import VideoModel, clip_table, no_annotations

Span = tuple[float, float] | None


class Neighbor(NamedTuple):
    """A clip near to the query.

    Attributes:
        similarity: The cosine of the angle between their embeddings, -1 to 1.
        video: The path or the URL of its video.
        span_s: The start and the end in seconds; None for the whole video.
    """

    similarity: float
    video: str
    span_s: Span

    @property
    def name(self) -> str:
        """The path of the video, with the times of a clip within it."""
        return clip_name(Prediction(self.video, span_s=self.span_s))


def search(
    features: Path,
    query: str,
    source: Callable[[str | None], VideoModel],
    out: Path,
    *,
    top: int,
    allow_private_urls: bool,
) -> list[Neighbor]:
    """Shows the nearest clips as a table and writes a page with thumbnails.

    Args:
        features: The file of features.
        query: A name in the file, which needs no model, or another video.
        source: A function that returns the model from the name of the checkpoint in the file.
        out: The page.
        top: The number of clips.
        allow_private_urls: See `VideoDataModule`.

    Raises:
        UserError: A file cannot be read or written, or the model is not that of the features.
        VideoError: The query cannot be read.
    """
    check_replaceable(out)
    stored = read_features(features)
    row = row_of(stored, query)
    if row is None:
        vector_D = embedded(stored, query, source, allow_private_urls)
    else:
        vector_D = next(chunk for i, chunk in enumerate(rows_of(stored)) if i == row)
    found = nearest(stored, vector_D, top, without=row)
    show(found)
    about = stored.contents.about
    asked = Neighbor(1.0, query, None) if row is None else Neighbor(1.0, *clip_of(stored, row))
    write_page(out, features, asked, found, about, len(stored.contents.ids), allow_private_urls)
    typer.echo(f"written: {printable(str(out))}", err=True)
    return found


def clip_of(stored: StoredFeatures, row: int) -> tuple[str, Span]:
    """Returns the video of a row, and its span unless it is the whole video."""
    spans_s = stored.contents.spans_s
    start_s, end_s = (0.0, math.inf) if spans_s is None else spans_s[row].tolist()
    return stored.contents.ids[row], None if end_s == math.inf else (start_s, end_s)


def row_of(stored: StoredFeatures, query: str) -> int | None:
    """Returns the row of a video, or of a clip with its times, such as "a.mp4@0.00-1.50"; None if there is none.

    Raises:
        UserError: The video has several clips.
    """
    clips = [clip_of(stored, row) for row in range(len(stored.contents.ids))]
    rows = [row for row, (video, _) in enumerate(clips) if video == query]
    if len(rows) > 1:
        names = [Neighbor(1.0, *clips[row]).name for row in rows[:3]]
        raise UserError(f"{query} has {len(rows)} clips in {stored.file}: name one, such as {', '.join(names)}")
    return next((row for row, clip in enumerate(clips) if query in (clip[0], Neighbor(1.0, *clip).name)), None)


def embedded(
    stored: StoredFeatures, query: str, source: Callable[[str | None], VideoModel], allow_private_urls: bool
) -> Array:
    """Returns the embedding of a video as that of a row, [D].

    Raises:
        UserError: The file does not say what its features are, or the model is another one.
        VideoError: The video cannot be read.
    """
    about = stored.contents.about
    level, views, name = (about.get(key) for key in ("level", "views", "checkpoint"))
    if level not in ("clip", "frame", "token") or not isinstance(views, str):
        raise UserError(f"{stored.file} does not say of what its features are: name a video that is in it")
    parse_views(views)
    model = source(name if isinstance(name, str) else None)
    if about.get("weights") != weights_digest(model.task.net):
        raise UserError(
            f"the features in {stored.file} are not those of this model: name theirs with --checkpoint"
        )
    found = model.embed([query], views=views, level=level, num_workers=0, allow_private_urls=allow_private_urls)
    return pooled(found.numpy())[0]


def pooled(features: Array) -> Array:
    """Returns unit vectors [n, D]: the mean over all axes but the first and the last, divided by its length."""
    mean_nD = features.reshape(len(features), -1, features.shape[-1]).mean(1)
    lengths = np.linalg.norm(mean_nD, axis=1, keepdims=True)
    return mean_nD / np.maximum(lengths, 1e-12)


def rows_of(stored: StoredFeatures) -> Any:
    """Yields the unit vector of each row, [D]."""
    for chunk in stored.chunks():
        yield from pooled(chunk)


def nearest(stored: StoredFeatures, vector_D: Array, top: int, without: int | None = None) -> list[Neighbor]:
    """Returns the nearest clips, nearest first; equal ones in the order of the file.

    Args:
        stored: The features.
        vector_D: A unit vector.
        top: The number of clips.
        without: A row to leave out, that of the query.

    Raises:
        UserError: The features have another size.
    """
    if stored.shape[-1] != len(vector_D):
        raise UserError(f"the features in {stored.file} have {stored.shape[-1]} numbers, not {len(vector_D)}")
    parts: list[NDArray[np.float32]] = [pooled(chunk) @ vector_D for chunk in stored.chunks()]
    similarity_N = np.nan_to_num(np.concatenate(parts), nan=-1.0)
    order = [row for row in np.argsort(-similarity_N, kind="stable").tolist() if row != without]
    return [Neighbor(float(similarity_N[row]), *clip_of(stored, row)) for row in order[:top]]


def show(found: Sequence[Neighbor]) -> None:
    """Shows the clips as a table on a terminal, or as lines with tabs in a pipe."""
    if not sys.stdout.isatty():
        for one in found:
            typer.echo(f"{one.similarity:.4f}\t{one.name}")
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("similarity", justify="right")
    table.add_column("video", overflow="fold")
    for one in found:
        table.add_row(f"{one.similarity:.4f}", Text(one.name))
    Console().print(table)


def write_page(
    out: Path,
    features: Path,
    asked: Neighbor,
    found: Sequence[Neighbor],
    about: Any,
    total: int,
    allow_private_urls: bool,
) -> None:
    """Writes the page; a clip whose file is not there any more has no picture."""
    pictures = pictures_of([asked, *found], allow_private_urls)
    level, views, checkpoint = (printable(about.get(key, "unknown")) for key in ("level", "views", "checkpoint"))
    cards = [
        {"name": one.name, "image": pictures.get(row), "similarity": one.similarity, "rank": row}
        for row, one in enumerate([asked, *found])
    ]
    page = render(
        "search.html",
        f"Nearest clips of {Path(asked.video).name}",
        subtitle=f"{plural(len(found), 'clip')} of {total:,} in {features}",
        query=cards[0],
        cards=cards[1:],
        facts={"features": str(features), "level": level, "views": views, "checkpoint": checkpoint},
    )
    with opened(out) as part:
        part.write_text(page, encoding="utf-8")


def pictures_of(clips: Sequence[Neighbor], allow_private_urls: bool) -> dict[int, str]:
    """Returns animated thumbnails of clips by their places, with frames that are spread over each clip."""
    table = clip_table([one.video for one in clips], [one.span_s or (0.0, math.inf) for one in clips])
    data = VideoDataModule(
        "videos",
        ".",
        no_annotations,
        frames=FRAMES,
        sampling="segments",
        short_side=SIDE,
        crop=SIDE,
        num_workers=0,
        allow_private_urls=allow_private_urls,
        protocol=EvalProtocol("val"),
        splits=Splits({}, table, table, None, "videos"),
    )
    return thumbnails(data, range(len(clips)))
