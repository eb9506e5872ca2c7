"""Resizes pictures exactly as the authors' code does, with TensorFlow's bilinear `tf.image.resize`.

It does not antialias: each new pixel is between the four pixels around its center. Fractions are cut off.
"""

from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

# "fast": libswscale while it converts colors, then torchvision, both with antialiasing; "authors": as here.
Resize = Literal["fast", "authors"]


@lru_cache(64)
def neighbors(size: int, new_size: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Returns the two old pixels around the center of each new one, and its distance from the first, [new_size].

    The arithmetic is that of TensorFlow in float32, down to the last bit.
    """
    half, scale = np.float32(0.5), np.float32(size) / np.float32(new_size)
    center = (np.arange(new_size, dtype=np.float32) + half) * scale - half
    first = np.floor(center)
    low, high = np.maximum(first, 0).astype(np.int64), np.minimum(first + 1, size - 1).astype(np.int64)
    return low, high, center - first


def bilinear(
    picture: NDArray[np.uint8], height: int, width: int, box: tuple[slice, slice] = (slice(None), slice(None))
) -> NDArray[np.uint8]:
    """Returns the rows and columns `box` of a resized picture, uint8 [H, W, C]."""
    if picture.shape[:2] == (height, width):
        return picture[box]
    (old_height, old_width, channels), (rows, columns) = picture.shape, box
    top, bottom, down = neighbors(old_height, height)
    left, right, across = neighbors(old_width, width)
    needed, (top, bottom) = np.unique(np.stack([top[rows], bottom[rows]]), return_inverse=True)
    flat = picture[needed].reshape(len(needed), -1)
    left, right = ((x[columns, None] * channels + np.arange(channels)).ravel() for x in (left, right))
    lines = between(flat.take(left, 1), flat.take(right, 1), across[columns].repeat(channels))
    pixels = between(lines[top], lines[bottom], down[rows, None])
    return pixels.astype(np.uint8).reshape(len(top), -1, channels)


def between(
    first: NDArray[np.generic], second: NDArray[np.generic], share: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Returns first + (second - first) * share in float32, in this order of operations."""
    start: NDArray[np.float32] = first.astype(np.float32, copy=False)
    found: NDArray[np.float32] = second.astype(np.float32)
    found -= start
    found *= share
    found += start
    return found
