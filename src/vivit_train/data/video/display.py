"""How a player shows decoded frames: upright and with square pixels."""

from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from av import VideoFrame
from av.sidedata.sidedata import Type
from av.video.stream import VideoStream
from numpy.typing import NDArray

from vivit_train.utils.errors import VideoError

SQUARE = Fraction(1)
MAX_ASPECT = 10  # Anamorphic formats widen pixels by 2 at most, so a header with more is damaged.


class DisplayShape(NamedTuple):
    """The shape of stored frames and how a player shows them: mirrored first, then rotated, then stretched.

    Attributes:
        stored_width: The width of stored frames in pixels.
        stored_height: The height of stored frames in pixels.
        rotation: The counterclockwise rotation for display, in degrees: 0, 90, 180 or 270.
        mirrored: Whether left and right are exchanged before the rotation.
        pixel_aspect: The width of a stored pixel divided by its height.
    """

    stored_width: int
    stored_height: int
    rotation: int
    mirrored: bool
    pixel_aspect: Fraction

    @classmethod
    def of(cls, frame: VideoFrame, pixel_aspect: Fraction = SQUARE) -> "DisplayShape":
        """Returns the shape of a decoded frame. Its display matrix is rounded to right angles."""
        rotation, mirrored = _orientation(frame)
        return cls(frame.width, frame.height, rotation, mirrored, pixel_aspect)

    @property
    def size(self) -> tuple[int, int]:
        """The width and height as shown, in pixels. The width depends on the pixel aspect, the height does not."""
        width, height = self.turned(self.stored_width, self.stored_height)
        aspect = 1 / self.pixel_aspect if self.rotation % 180 else self.pixel_aspect
        return max(1, int(width * aspect)), height

    def scaled(self, short_side: int | None) -> tuple[int, int]:
        """Returns the shown width and height after scaling the short side down to at most `short_side` pixels."""
        width, height = self.size
        shrink = min(1.0, (short_side or np.inf) / min(width, height))
        return max(1, round(width * shrink)), max(1, round(height * shrink))

    def resized(self, short_side: int | None) -> tuple[int, int]:
        """Returns the shown width and height after resizing the short side, up or down, as in the authors' code.

        They cut off the fraction of the long side.
        """
        width, height = self.size
        shortest = min(width, height)
        side = short_side or shortest
        return width * side // shortest, height * side // shortest

    def turned(self, width: int, height: int) -> tuple[int, int]:
        """Returns the shown width and height of a stored frame, or the reverse, without any stretching."""
        return (height, width) if self.rotation % 180 else (width, height)

    def upright(self, stored: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Returns a view of a stored picture, uint8 [H, W, ...], as it is shown."""
        if self.mirrored:
            stored = stored[:, ::-1]
        return np.rot90(stored, self.rotation // 90) if self.rotation else stored


def _orientation(frame: VideoFrame) -> tuple[int, bool]:
    """Returns the rotation and the mirroring of a frame from its display matrix (FFmpeg, libavutil/display.h).

    The matrix maps a stored point (x, y), with y downwards, to the shown point (a x + c y, b x + d y).
    """
    try:
        side_data: Any = frame.side_data
    except ValueError:  # PyAV does not know each type of side data, for example EXIF, but tells the rotation
        return round(frame.rotation / 90) * 90 % 360, False
    data = side_data.get(Type.DISPLAYMATRIX)
    if data is None:
        return 0, False
    a, b, _, c, d = np.frombuffer(data, np.int32)[:5].astype(float).tolist()
    mirrored = a * d - b * c < 0
    if mirrored:  # what remains after undoing the mirroring is a rotation
        a, b = -a, -b
    return round(-np.degrees(np.arctan2(b, a)) / 90) * 90 % 360, mirrored


def pixel_aspect(path: str, stream: VideoStream) -> Fraction:
    """Returns the pixel aspect of a stream that has decoded a frame: the container's or else the decoder's.

    Raises:
        VideoError: If no real video has such pixels.
    """
    aspect = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or SQUARE
    if not 1 <= MAX_ASPECT * aspect <= MAX_ASPECT**2:
        why = f"claims pixels {float(aspect):.3g} times as wide as high, so its header is damaged"
        raise VideoError(path, f"{why}; data.square_pixels=false reads its stored pixels", kind="damaged")
    return aspect
