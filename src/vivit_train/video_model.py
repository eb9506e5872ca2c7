"""A trained model with its preprocessing: from videos to labels, logits and embeddings.

    model = vivit_train.load("runs/mine")
    print(model.predict("video.mp4", views="4x3"))

The model, its class names and its preprocessing come from the checkpoint. Predictions are those of eval.py.
"""

import gc
import math
import os
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, Literal, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vivit_train.data.annotations.table import ClipTable, Splits, StrPath
from vivit_train.data.datamodule import VideoDataModule
from vivit_train.data.dataset import ClipBatch, EvalProtocol
from vivit_train.data.watchdog import LoaderDiedError
from vivit_train.models.embeddings import Level, embeddings
from vivit_train.predictions import Prediction, best_labels
from vivit_train.training.checkpoint import Metadata
from vivit_train.training.evaluation import parse_views
from vivit_train.training.module import VideoClassifier
from vivit_train.utils.errors import UserError, VideoError
from vivit_train.utils.process_pool import usable_cores

Video = StrPath
Workers = int | Literal["auto"]


class VideoModel:
    """A model that predicts the classes of videos. `vivit_train.load` builds it from a checkpoint.

    Args:
        task: The model with its class names and its normalization.
        build_data: A function that builds a data module with the preprocessing of the model from the remaining
            arguments of `VideoDataModule`.
        device: "cpu", "cuda", or "auto", which is a GPU if there is one. On a GPU, the model computes in bf16, as
            eval.py does.
        metadata: What `load` needs beside the weights to build the model again; None without classes.

    Attributes:
        classes: The class names of each head in the order of the logits. A single head has the name "".
        multi_label: Whether a video may have any number of classes, each with an independent probability.
        device: The device.
    """

    def __init__(
        self,
        task: VideoClassifier,
        build_data: Callable[..., VideoDataModule],
        device: str = "auto",
        metadata: Metadata | None = None,
    ) -> None:
        self.device = usable_device(device)
        self.task = task.to(self.device).eval()
        self.classes, self.multi_label = task.classes, task.multi_label
        self.build_data, self.metadata = build_data, metadata

    @overload
    def predict(self, videos: Video, *, views: str = ..., top: int = ..., **loading: Any) -> Prediction: ...

    @overload
    def predict(
        self, videos: Sequence[Video], *, views: str = ..., top: int = ..., **loading: Any
    ) -> list[Prediction]: ...

    def predict(
        self, videos: Video | Sequence[Video], *, views: str = "1x1", top: int = 5, **loading: Any
    ) -> Prediction | list[Prediction]:
        """Returns the most probable labels of a video, or those of each video in a list.

        Args:
            videos: The path or the URL of a video, or a list of them; storage.py describes the supported paths.
            views: The temporal clips x spatial crops of each video, whose logits are averaged, such as "4x3".
            top: The number of labels.
            loading: Further arguments of `stream`.

        Raises:
            VideoError: The one video cannot be read. In a list, such a video has an `error` and no labels.
            UserError: The views are invalid.
        """
        listed = [videos] if isinstance(videos, str | os.PathLike) else list(videos)
        found = list(self.stream(clip_table(listed), views=views, top=top, **loading))
        if not isinstance(videos, str | os.PathLike):
            return found
        if found[0].failed:
            raise VideoError(found[0].video, found[0].error)
        return found[0]

    def stream(
        self, clips: ClipTable, *, views: str = "1x1", top: int = 5, **loading: Any
    ) -> Iterator[Prediction]:
        """Yields the prediction of each clip, in their order, while loader processes read the next ones.

        Args:
            clips: The videos, from `clip_table`.
            views, top: See `predict`.
            loading: Further arguments of `batches`.

        Raises:
            UserError: The views are invalid, the model has no classes, or a loader process dies between two
                videos.
        """
        if not self.classes:
            raise UserError("these weights have no classes to predict; the model only embeds videos")
        best = partial(best_labels, classes=self.classes, multi_label=self.multi_label, top=top)
        mean = partial(self.task.mean_over_views, self.task.logits)
        # A GPU computes the next batch while the labels of this one are made.
        is_gpu = self.device.type == "cuda"
        launched = ahead(
            self.batches(clips, views=views, **loading),
            lambda batch: self.launch(mean, batch["video"]),
            by=int(is_gpu),
        )
        for batch, logits_BK in launched:
            errors = {row: why for row, _, why in batch["errors"]}
            for row, logits_K in zip(batch["index"].tolist(), logits_BK.cpu(), strict=True):
                video = str(clips.paths[row])
                start_s, end_s = (0.0, math.inf) if clips.spans_s is None else clips.spans_s[row].tolist()
                span_s = None if end_s == math.inf else (start_s, end_s)
                if row in errors:
                    yield Prediction(video, error=errors[row], span_s=span_s)
                else:
                    yield Prediction(video, best(logits_K), logits_K.numpy(), span_s=span_s)

    def logits(self, clips_BTCHW: Tensor) -> Tensor:
        """Returns the logits [B, K] of uint8 clips [B, T, C, H, W]; those of several heads are concatenated."""
        return self.mean_over_views(self.task.logits, clips_BTCHW[:, None])

    @overload
    def embed(self, videos: Video, *, views: str = ..., level: Level = ..., **loading: Any) -> Tensor: ...

    @overload
    def embed(
        self, videos: Sequence[Video], *, views: str = ..., level: Level = ..., **loading: Any
    ) -> Tensor: ...

    def embed(
        self, videos: Video | Sequence[Video], *, views: str = "1x1", level: Level = "clip", **loading: Any
    ) -> Tensor:
        """Returns the representation of a video before the head, averaged over its views, float32 [D].

        A list of N videos has representations [N, D]. See `predict` for the arguments.

        Args:
            videos, views, loading: See `predict`.
            level: "clip", or "frame" or "token", which have further axes; see `embed_views`.

        Raises:
            VideoError: A video cannot be read.
            UserError: The views are invalid, or do not fit the level.
        """
        listed = [videos] if isinstance(videos, str | os.PathLike) else list(videos)
        found = []
        for batch in self.batches(clip_table(listed), views=views, **loading):
            for _, path, why in batch["errors"]:
                raise VideoError(path, why)
            found.append(self.embed_views(batch["video"], parse_views(views), level))
        features_ND = torch.cat(found)
        return features_ND[0] if isinstance(videos, str | os.PathLike) else features_ND

    def preprocess(self, video: Video, *, views: str = "1x1") -> Tensor:
        """Returns the views of a video as the model takes them, uint8 [V, T, C, H, W].

        Raises:
            VideoError: The video cannot be read.
            UserError: The views are invalid.
        """
        (batch,) = self.batches(clip_table([video]), views=views)
        for _, path, why in batch["errors"]:
            raise VideoError(path, why)
        return batch["video"][0]

    def batches(
        self,
        clips: ClipTable,
        *,
        views: str = "1x1",
        batch_size: int | None = None,
        num_workers: Workers = "auto",
        allow_private_urls: bool = False,
        rows: Container[int] | None = None,
    ) -> Iterator[ClipBatch]:
        """Yields batches of clips with all their views, and "errors" for the clips that cannot be read.

        A video that makes its loader process die or hang cannot be read; new processes go on with the others.

        Args:
            clips: The clips, from `clip_table`.
            views: See `predict`.
            batch_size: The number of clips times views in one forward pass; None is that of the training.
            num_workers: The number of loader processes; "auto" is one per CPU core, but no more than there are
                videos, and 0 reads the videos in this process.
            allow_private_urls: See `VideoDataModule`.
            rows: The clips to read; None is all. The others are left out of the batches of all clips.

        Raises:
            UserError: The views are invalid, or a loader process dies.
        """
        given: dict[str, Any] = {"views": views, "allow_private_urls": allow_private_urls}
        given |= {} if batch_size is None else {"micro_batch_size": batch_size}
        given["num_workers"] = min(usable_cores(), len(clips)) if num_workers == "auto" else num_workers
        done, refused = 0, dict[str, str]()
        while len(clips):
            data = self.data_for(clips, **given)
            data.video_reader = replace(data.video_reader, refused=refused)
            loader = data.test_dataloader()
            batches: Any = loader.batch_sampler  # a list
            if rows is not None:
                batches[:] = [wanted for batch in batches if (wanted := [row for row in batch if row in rows])]
            del batches[:done]
            try:
                with data.translate_worker_errors():
                    for batch in loader:
                        yield batch
                        done += 1
                return
            except LoaderDiedError as error:
                if not set(error.videos) - refused.keys():
                    raise
                refused |= dict.fromkeys(error.videos, error.why)
            del batches, loader, data
            gc.collect()  # The next processes would inherit the dead loader, and complain when they drop it.

    def data_for(self, clips: ClipTable, *, views: str, **settings: Any) -> VideoDataModule:
        """Returns a data module of clips, with the preprocessing of the model.

        Args:
            clips: The clips, from `clip_table`.
            views: See `predict`.
            settings: Further arguments of `VideoDataModule`.

        Raises:
            UserError: The views are invalid.
        """
        return self.build_data(
            name="videos",
            root=".",
            reader=no_annotations,
            splits=Splits({}, clips, clips, None, "videos"),
            protocol=EvalProtocol("val", parse_views(views)),
            **settings,
        )

    def shares(self, views_BVTCHW: Tensor) -> NDArray[np.float64]:
        """Returns the probabilities of clips from their views, [B, K]; those of several heads are concatenated."""
        logits_BK = self.mean_over_views(self.task.logits, views_BVTCHW).double()
        if self.multi_label:
            return logits_BK.sigmoid().numpy()
        parts = logits_BK.split(list(self.task.heads.values()), dim=1)
        return torch.cat([part.softmax(1) for part in parts], dim=1).numpy()

    def embed_views(self, views_BVTCHW: Tensor, views: tuple[int, int], level: Level) -> Tensor:
        """Returns the embeddings of videos from their views, float32 on the CPU.

        Args:
            views_BVTCHW: The views of each video, uint8.
            views: The number of temporal clips and of spatial crops.
            level: "clip" is the mean over the views, [B, D]. "frame" is the mean over the crops, with the frames
                of all clips in order, [B, clips * t, D], and "token" likewise [B, clips * t, rows, columns, D];
                see `embeddings`.

        Raises:
            UserError: There are several crops, whose tokens show different places.
        """
        if level == "clip":
            return self.mean_over_views(self.task.net.features, views_BVTCHW)
        if level == "token" and views[1] > 1:
            raise UserError(f"tokens of {views[1]} crops show different places: set the views to {views[0]}x1")
        function = partial(embeddings, self.task.net, level=level)
        found_BV = self.on_device(partial(self.task.each_view, function), views_BVTCHW)
        return found_BV.unflatten(1, views).mean(2).flatten(1, 2)

    def mean_over_views(self, function: Callable[[Tensor], Tensor], views_BVTCHW: Tensor) -> Tensor:
        """Returns the mean over the views of a function of normalized clips, float32 [B, ...] on the CPU."""
        return self.on_device(partial(self.task.mean_over_views, function), views_BVTCHW)

    def on_device(self, function: Callable[[Tensor], Tensor], views_BVTCHW: Tensor) -> Tensor:
        """Returns a function of uint8 views, computed on the device, on the CPU."""
        return self.launch(function, views_BVTCHW).cpu()

    def launch(self, function: Callable[[Tensor], Tensor], views_BVTCHW: Tensor) -> Tensor:
        """Returns a function of uint8 views on the device, without waiting for a GPU."""
        half = torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else nullcontext()
        with torch.no_grad(), half:
            return function(views_BVTCHW.to(self.device, non_blocking=True))


def ahead(
    batches: Iterable[ClipBatch], launch: Callable[[ClipBatch], Tensor], by: int
) -> Iterator[tuple[ClipBatch, Tensor]]:
    """Yields each batch with what was launched for it, in order, while up to `by` later ones are under way.

    After an error of the loader, the batches before it are still yielded.
    """
    waiting: deque[tuple[ClipBatch, Tensor]] = deque()
    try:
        for batch in batches:
            waiting.append((batch, launch(batch)))
            if len(waiting) > by:
                yield waiting.popleft()
    except UserError:
        yield from waiting
        raise
    yield from waiting


def usable_device(device: str) -> torch.device:
    """Returns the device.

    Raises:
        UserError: The device is unknown or not available.
    """
    there = torch.cuda.is_available()
    if device == "auto":
        return torch.device("cuda" if there else "cpu")
    if device not in ("cpu", "cuda"):
        raise UserError(f"device is '{device}'; it must be cpu, cuda or auto")
    if device == "cuda" and not there:
        raise UserError("device is 'cuda', but there is no GPU that torch can use")
    return torch.device(device)


def clip_table(videos: Sequence[Video], spans_s: Sequence[tuple[float, float]] | None = None) -> ClipTable:
    """Returns a table of videos without labels.

    Args:
        videos: The paths or the URLs.
        spans_s: The start and the end of each clip in seconds, with an infinite end for a whole video; None if all
            clips are whole videos.
    """
    # Unlike numpy's strings, Python's hold the names that are not valid text.
    paths = np.array([os.fspath(video) for video in videos], dtype=object)
    spans = None if spans_s is None else np.array(spans_s, np.float64).reshape(-1, 2)
    return ClipTable(paths, np.zeros((len(paths), 1), np.int64), paths, spans)


def no_annotations(*_: Any, **__: Any) -> Splits:
    """Stands for the reader of a data module whose clips are given."""
    raise AssertionError("the clips are given")
