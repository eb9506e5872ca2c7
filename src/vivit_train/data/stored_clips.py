"""Data sets of clips whose features are stored: their views as pixels, and the features themselves."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from vivit_train.data.annotations.table import ClipTable
from vivit_train.data.dataset import Sample, TrainDataset, mirror
from vivit_train.data.sampler import Key
from vivit_train.data.sampling import PAD_INDEX
from vivit_train.data.transforms import seeded
from vivit_train.utils.errors import VideoError

FLIPPED = 4  # The place of the flip in the box of a `Sample`.


class ViewDataset(TrainDataset):
    """A data set of a fixed number of augmented views of each training clip. A key is (view, 0, row).

    The draws of a view depend only on its number and on the clip. Therefore runs with another seed, or with other
    clips besides these, have the same views. A video that cannot be read gives zeros and the reason.
    """

    def clips(self, key: Key) -> list[Sample]:
        view, _, row = key
        path = str(self.manifest.paths[row])
        span = () if self.manifest.spans_s is None else self.manifest.spans_s[row].tolist()
        try:
            with seeded(view, zlib.crc32(repr((path, *span)).encode())):
                (sample,) = self.load(row)
            return [sample | {"failed": False}]
        except VideoError as error:
            frames, crop = self.sampling.frames, self.transform.crop
            return [
                {
                    "video": torch.zeros(frames, 3, crop, crop, dtype=torch.uint8),
                    "label": torch.from_numpy(self.manifest.target(row)),
                    "index": row,
                    "frame_numbers": torch.full((frames,), PAD_INDEX),
                    "times_s": torch.full((frames,), torch.nan, dtype=torch.float64),
                    "box": torch.zeros(5, dtype=torch.int64),
                    "failed": True,
                    "errors": [(row, error.path, error.reason)],
                }
            ]


@dataclass(frozen=True)
class StoredViews:
    """What is stored of the views of the clips of a split.

    Attributes:
        tensors: The features and, of training views, "frame_numbers", "times_s" and "box"; each is [stored, ...].
        places: The place of each view of each clip in the tensors, [views, clips]; -1 if it cannot be read.
    """

    tensors: Mapping[str, Tensor]
    places: NDArray[np.int64]

    def of(self, view: int, row: int) -> Sample:
        """Returns what is stored of a view; zeros if the video cannot be read."""
        place = int(self.places[view, row])
        found = {name: x[max(place, 0)] for name, x in self.tensors.items()}
        return found if place >= 0 else {name: torch.zeros_like(x) for name, x in found.items()}  # type: ignore[return-value]


class StoredTrainDataset(Dataset[Sample]):
    """A data set of the features of training clips, with the keys and samples of `TrainDataset`.

    Epoch e takes view e modulo the number of views. A clip that repeats within an epoch takes the views after it.
    A video that cannot be read is replaced by a random one, as in `TrainDataset`.

    Args:
        manifest: The table of training clips.
        views: What is stored of them.
        mirrored: See `TrainDataset`.
        seed: The seed of the replacements.
    """

    def __init__(
        self, manifest: ClipTable, views: StoredViews, mirrored: list[NDArray[np.int64]] | None, seed: int
    ) -> None:
        self.manifest, self.views, self.mirrored, self.seed = manifest, views, mirrored, seed
        self.readable = np.flatnonzero((views.places >= 0).all(0))

    def __getitem__(self, key: Key) -> Sample:
        epoch, repeat, row = key
        view = (epoch + repeat) % len(self.views.places)
        if self.views.places[view, row] < 0:
            with seeded(self.seed, *key):
                row = int(self.readable[int(torch.randint(len(self.readable), ()))])
        sample, label = self.views.of(view, row), self.manifest.target(row)
        if sample["box"][FLIPPED] and self.mirrored is not None:
            label = mirror(label, self.mirrored)
        return sample | {"label": torch.from_numpy(label), "index": row, "errors": []}


class StoredEvalDataset(Dataset[Sample]):
    """A data set of the features of the single evaluation view of each clip, with the samples of `EvalDataset`."""

    def __init__(self, manifest: ClipTable, views: StoredViews) -> None:
        self.manifest, self.views = manifest, views

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, row: int) -> Sample:
        sample: Sample = {
            "features": self.views.of(0, row)["features"][None],
            "label": torch.from_numpy(self.manifest.target(row)),
            "index": row,
            "failed": bool(self.views.places[0, row] < 0),
            "errors": [],
        }
        return sample
