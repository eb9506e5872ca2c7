"""Converts decoded frames to RGB as a player shows them: scaled, upright, cropped and with ordinary colors."""

from collections.abc import Callable
from typing import Any

import numpy as np
from av import VideoFrame
from av.video.format import VideoFormat
from av.video.reformatter import Interpolation, VideoReformatter

from vivit_train.data.video.color import to_bt709, wide_color
from vivit_train.data.video.display import DisplayShape
from vivit_train.data.video.resize import Resize, bilinear

RGB: Any = VideoFormat("rgb24")  # Looking it up by name for each frame would take a tenth of the conversion time.
BBox = tuple[int, int, int, int]  # top, left, height, width
CropFn = Callable[[int, int], BBox]  # (height, width) of the frames -> crop box


class FrameBuffer:
    """A buffer of decoded frames, uint8 [n, H, W, 3], that scales, turns and crops all like the video's first.

    Args:
        n: The number of frames.
        shape_of: A function that returns the shape of the video's first frame, given the first frame that is put.
        short_side, cut, resize: See `read_frames`.
    """

    def __init__(
        self,
        n: int,
        shape_of: Callable[[VideoFrame], DisplayShape],
        short_side: int | None,
        cut: CropFn | None,
        resize: Resize,
    ) -> None:
        self.n, self.short_side, self.cut = n, short_side, cut or (lambda height, width: (0, 0, height, width))
        self.scales = resize == "fast"  # while colors are converted
        self.shape_of, self.frames = shape_of, np.empty((0, 0, 0, 3), np.uint8)
        self.reformat = VideoReformatter().reformat

    def put(self, place: int, frame: VideoFrame) -> None:
        """Converts a frame to RGB and stores it at position `place`."""
        if not self.frames.size:
            self.shape = self.shape_of(frame)
            width, height = (self.shape.scaled if self.scales else self.shape.resized)(self.short_side)
            self.shown, self.stored = (height, width), (self.shape.stored_width, self.shape.stored_height)
            if self.scales:
                self.stored = self.shape.turned(width, height)
            top, left, box_height, box_width = self.cut(height, width)
            self.box = np.s_[top : top + box_height, left : left + box_width]
            self.frames = np.empty((self.n, box_height, box_width, 3), np.uint8)
        if wide_color(frame):
            rows = to_bt709(frame, *self.stored)
        else:  # decord scales bicubically too.
            rgb = self.reformat(frame, *self.stored, RGB, interpolation=Interpolation.BICUBIC, threads=1)
            (plane,), (width, height) = rgb.planes, self.stored
            rows = np.ndarray((height, width, 3), np.uint8, memoryview(plane), strides=(plane.line_size, 3, 1))
        self.frames[place] = bilinear(self.shape.upright(rows), *self.shown, self.box)
