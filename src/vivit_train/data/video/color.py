"""Converts HDR (PQ, HLG) and BT.2020 frames to BT.709, the colors of an ordinary screen.

PyAV has neither zscale nor libplacebo, and libswscale takes seconds to set up such a conversion. This module
follows the reports of the ITU: the curves of BT.2100, the tone mapping of BT.2390 (section 5.4.1) on the largest
of R, G and B, the matrix of BT.2087 and the curve of BT.709. Reference white, 203 cd/m² (BT.2408), becomes white.
"""

from functools import cache

import numpy as np
from av import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

Floats = NDArray[np.float32]
# These are values of FFmpeg's enums AVColorPrimaries, AVColorTransferCharacteristic and AVColorSpace.
UNSPECIFIED, BT2020 = 2, 9
HDR_TRANSFERS = {16: "PQ", 18: "HLG"}
WHITE = 203.0
PEAKS = {"PQ": 10_000.0, "HLG": 1_000.0}  # the brightest light of each curve, in cd/m²
BITS = 12  # The tables have an entry for each value of this many bits.
TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)
LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)  # of BT.2020's R, G and B
SYSTEM_GAMMA = 1.2  # of HLG on a display of 1,000 cd/m²
M1, M2, C1, C2, C3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128  # the constants of PQ


def wide_color(frame: VideoFrame) -> str:
    """Returns "PQ", "HLG" or "BT.2020" if an ordinary screen cannot show a frame's colors as stored, else ""."""
    transfer = HDR_TRANSFERS.get(frame.color_trc, "")
    return transfer or ("BT.2020" if frame.color_primaries == BT2020 else "")


def to_bt709(frame: VideoFrame, width: int, height: int) -> NDArray[np.uint8]:
    """Returns a frame with wide colors as RGB of BT.709, uint8 [height, width, 3]."""
    # HDR without a matrix is BT.2020.
    matrix = BT2020 if frame.colorspace == UNSPECIFIED else frame.colorspace
    bicubic = Interpolation.BICUBIC
    wide = VideoReformatter().reformat(frame, width, height, "rgb48le", matrix, interpolation=bicubic, threads=1)
    codes = wide.to_ndarray().astype(np.uint16, copy=False) >> (16 - BITS)
    name = wide_color(frame)
    light = _light(name)[codes]
    if name == "HLG":  # from the light of the scene to the light of the display
        light *= np.maximum(light @ LUMINANCE, 1e-6)[..., None] ** np.float32(SYSTEM_GAMMA - 1)
    if peak := PEAKS.get(name):
        light *= np.float32(peak / WHITE)
        light *= _tone_scale(peak)[_sqrt_index(light.max(axis=-1), peak / WHITE)][..., None]
    return _bt709_codes()[_sqrt_index(light @ TO_BT709.T, 1.0)]


def _sqrt_index(light: Floats, top: float) -> NDArray[np.int64]:
    """Returns the positions of light of 0 to `top` in a table that is finer in the dark."""
    return np.rint(np.sqrt(np.clip(light / np.float32(top), 0, 1)) * (2**BITS - 1)).astype(np.int64)


def _sqrt_grid(top: float) -> NDArray[np.float64]:
    return top * np.linspace(0, 1, 2**BITS) ** 2


@cache
def _light(name: str) -> Floats:
    """Returns the linear light of each code, from 0 to 1."""
    code = np.linspace(0, 1, 2**BITS)
    if name == "PQ":
        light = _pq_light(code)
    elif name == "HLG":
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)
    else:
        light = np.where(code < 0.081, code / 4.5, ((code + 0.099) / 1.099) ** (1 / 0.45))
    return light.astype(np.float32)


@cache
def _bt709_codes() -> NDArray[np.uint8]:
    """Returns the 8-bit code of linear light at each point of the grid from 0 to 1."""
    light = _sqrt_grid(1.0)
    code = np.where(light < 0.018, 4.5 * light, 1.099 * light**0.45 - 0.099)
    return np.rint(255 * code).astype(np.uint8)


@cache
def _tone_scale(peak: float) -> Floats:
    """Returns the factor that brings light to at most 1, at each point of the grid from 0 to `peak` / `WHITE`."""
    light = _sqrt_grid(peak / WHITE)[1:]
    top, most = _pq_code(np.array([peak, WHITE]) / PEAKS["PQ"])
    code, most = _pq_code(light * WHITE / PEAKS["PQ"]) / top, most / top
    knee = 1.5 * most - 0.5
    t = np.clip((code - knee) / (1 - knee), 0, 1)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * most
    mapped = _pq_light(np.where(code < knee, code, spline) * top) * PEAKS["PQ"] / WHITE
    return np.concatenate(([1.0], mapped / light)).astype(np.float32)


def _pq_light(code: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the light of PQ codes, both from 0 to 1."""
    root = code ** (1 / M2)
    light: NDArray[np.float64] = (np.maximum(root - C1, 0) / (C2 - C3 * root)) ** (1 / M1)
    return light


def _pq_code(light: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the PQ codes of light, both from 0 to 1."""
    root = light**M1
    code: NDArray[np.float64] = ((C1 + C2 * root) / (1 + C3 * root)) ** M2
    return code
