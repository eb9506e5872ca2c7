"""Short animated pictures of videos for a page."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vivit_train.data.datamodule import VideoDataModule
from vivit_train.utils.errors import VideoError
from vivit_train.utils.page import animation

FRAMES, SIDE = 12, 160  # of a thumbnail; the side is in pixels
FRAME_MS = 160


def thumbnail(video_TCHW: Tensor) -> str:
    """Returns an animated WebP of up to `FRAMES` frames as a data URL.

    Args:
        video_TCHW: The frames, uint8.
    """
    chosen = np.linspace(0, len(video_TCHW) - 1, min(FRAMES, len(video_TCHW))).round().astype(int)
    scale = SIDE / max(video_TCHW.shape[-2:])
    frames_TCHW = F.interpolate(
        video_TCHW[chosen].float(), scale_factor=scale, mode="area" if scale < 1 else "nearest"
    )
    images = [Image.fromarray(frame.permute(1, 2, 0).byte().numpy()) for frame in frames_TCHW]
    return animation(images, FRAME_MS, quality=60, method=2)


def thumbnails(data: VideoDataModule, rows: Sequence[int]) -> dict[int, str]:
    """Returns the thumbnails of rows of the test split, as the model sees one view; unreadable videos have none.

    Args:
        data: The data module, whose protocol defines the split and the order of the frames.
        rows: The rows of the clip table.
    """
    videos = data.evaluation_dataset(data.test_split, replace(data.protocol, views=(1, 1)))
    found = {}
    for row in dict.fromkeys(rows):
        try:
            found[row] = thumbnail(videos.load(str(videos.manifest.paths[row]), row)[0])
        except VideoError:  # It was readable a moment ago.
            continue
    return found
