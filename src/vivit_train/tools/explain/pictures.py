"""Heat maps over clips: frames, an animated picture for a page, and a video.

Shape suffixes: T frames, H rows, W columns; t time indices, h and w tubelets in space.
"""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch.nn.functional as F
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vivit_train.utils.page import animation, data_url

Pixels = NDArray[np.uint8]
SIDE = 320  # pixels of the long side of a shown frame
STRONGEST = 0.75  # the opacity of the most relevant place
SHOWN_S = 3.0  # how long a clip is shown
HERE, ELSEWHERE = (252, 165, 10), (120, 120, 120)  # colors of the bars of frames
FILM_SIDE = 96  # pixels of the long side of a frame in the film strip


def heat_of(relevance_thw: Tensor, frames: int, height: int, width: int) -> Tensor:
    """Returns the relevance of each pixel, [T, H, W], 0 to 1: interpolated in space, constant over a tubelet."""
    heat_tHW = F.interpolate(relevance_thw[None].float(), (height, width), mode="bilinear")[0]
    heat_THW = heat_tHW.repeat_interleave(-(-frames // len(heat_tHW)), 0)[:frames]
    return heat_THW / heat_THW.max().clamp(min=1e-12)


def overlaid(clip_TCHW: Tensor, heat_THW: Tensor) -> tuple[Pixels, Pixels]:
    """Returns the frames of a clip as they are, and under their heat maps; uint8 [T, H, W, 3], enlarged.

    Places of no more than the mean relevance of the clip have no color.
    """
    scale = SIDE / max(clip_TCHW.shape[-2:])
    size = [2 * round(scale * side / 2) for side in clip_TCHW.shape[-2:]]  # Video encoders need even sizes.
    frames = F.interpolate(clip_TCHW.float(), size, mode="bilinear", antialias=True).clamp(0, 255)
    plain = frames.permute(0, 2, 3, 1).numpy()
    mean = heat_THW.mean()
    above_THW = (heat_THW - mean).clamp(min=0) / (heat_THW.max() - mean).clamp(min=1e-12)
    enlarged = F.interpolate(above_THW[:, None], size, mode="bilinear")[:, 0].clamp(0, 1)
    heat = enlarged.sqrt().numpy()  # Weak places stay visible.
    colors = np.asarray(colormaps["inferno"](heat))[..., :3] * 255
    opacity = (STRONGEST * heat)[..., None]
    return plain.astype(np.uint8), (plain * (1 - opacity) + colors * opacity).astype(np.uint8)


def animated(frames: Pixels, frame_ms: float) -> str:
    """Returns an animated WebP as a data URL."""
    return animation([Image.fromarray(frame) for frame in frames], round(frame_ms), quality=75, method=3)


def still(frame: Pixels) -> str:
    """Returns a small WebP of a frame as a data URL."""
    image = Image.fromarray(frame)
    image.thumbnail((FILM_SIDE, FILM_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=70)
    return data_url("webp", buffer.getvalue())


def frame_ms(frames: int) -> float:
    """Returns how long each frame of a clip is shown: all of them for `SHOWN_S`, at most 25 per second."""
    return max(1000 * SHOWN_S / frames, 40)


def write_video(file: Path, frames: Pixels, shares: NDArray[np.float64], ms: float) -> None:
    """Writes an H.264 video, with the share of each frame as a bar below, and the current one highlighted."""
    strip = 32
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(1000 / ms).limit_denominator(1000))
        T, height, width, _ = frames.shape
        stream.width, stream.height, stream.pix_fmt = width, height + strip, "yuv420p"
        stream.options = {"crf": "18"}
        bars = np.round(shares / max(shares.max(), 1e-12) * (strip - 6)).astype(int)
        edges = np.linspace(0, width, T + 1).astype(int)
        for now, frame in enumerate(frames):
            page = np.full((height + strip, width, 3), 18, np.uint8)
            page[:height] = frame
            for i, bar in enumerate(bars):
                columns = slice(edges[i] + 1, max(edges[i + 1] - 1, edges[i] + 2))
                page[height + strip - 2 - bar : height + strip - 2, columns] = HERE if i == now else ELSEWHERE
            for packet in stream.encode(av.VideoFrame.from_ndarray(page, format="rgb24")):
                container.mux(packet)
        container.mux(stream.encode())


def side_by_side(plain: Pixels, heat: Pixels) -> Pixels:
    """Returns frames with their heat maps to the right, [T, H, 2 W + gap, 3]."""
    gap = np.full((*plain.shape[:2], 8, 3), 255, np.uint8)
    return np.concatenate([plain, gap, heat], axis=2)


def frame_shares(heat_THW: Tensor) -> NDArray[np.float64]:
    """Returns the share of the relevance that each frame has, [T]."""
    sums_T = heat_THW.sum((1, 2)).double()
    shares: NDArray[np.float64] = (sums_T / sums_T.sum().clamp(min=1e-12)).numpy()
    return shares
