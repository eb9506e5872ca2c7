"""The inputs of 200 simulated training steps, by formula: initial weights, clips, and the settings of both loops.

It imports only NumPy, so that goldens/training/make.py and the tests share it.
"""

import math
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

FRAMES, SIDE, CLASSES, VIDEOS = 4, 16, 4, 20
TUBELET, DIM, HEADS, DEPTH, MLP, TEMPORAL_DEPTH = (2, 8, 8), 16, 2, 2, 32, 1
EPOCHS, BATCH, STEPS = 20, 2, 200
WARMUP_STEPS = 25  # 2.5 epochs
LR, MOMENTUM, CLIP, SMOOTHING, MIXUP = 0.01, 0.9, 1.0, 0.3, 0.3
MODELS = ("vivit_st", "vivit_fe")


def noise(name: str, *shape: int) -> NDArray[np.float64]:
    """Returns reproducible numbers in [-0.5, 0.5) with 24 bits, so that float32 holds them exactly.

    They are a hash (splitmix64) of the name and the position.
    """
    x = np.arange(math.prod(shape), dtype=np.uint64) + (np.uint64(zlib.crc32(name.encode())) << np.uint64(32))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return ((x >> np.uint64(40)).astype(np.float64) / 2**24 - 0.5).reshape(shape)


def clip(video: int) -> NDArray[np.uint8]:
    """Returns a clip, [T, H, W, 3]: stripes that move as its class, video % CLASSES, says, in noise."""
    t, y, x = np.mgrid[:FRAMES, :SIDE, :SIDE]
    dx, dy, speed = ((1, 0, 1), (1, 0, -1), (0, 1, 1), (0, 1, -1))[video % CLASSES]
    stripes = (x * dx + y * dy + speed * t + video // CLASSES) % 8 < 4
    pixels = 96 + 64 * stripes[..., None] + 128 * noise(f"clip {video}", FRAMES, SIDE, SIDE, 3)
    return np.floor(pixels).astype(np.uint8)


def parameters(model: str) -> dict[str, NDArray[np.float64]]:
    """Returns the initial weights by path in the authors' tree; float32 holds them exactly."""
    t, rows, columns = FRAMES // TUBELET[0], SIDE // TUBELET[1], SIDE // TUBELET[2]
    shapes = {
        "embedding/kernel": (*TUBELET, 3, DIM),
        "embedding/bias": (DIM,),
        "output_projection/kernel": (DIM, CLASSES),
        "output_projection/bias": (CLASSES,),
    }
    if model == "vivit_st":
        shapes |= encoder("Transformer", "cls", t * rows * columns, DEPTH)
    else:
        shapes |= encoder("SpatialTransformer", "cls_SpatialTransformer", rows * columns, DEPTH)
        shapes |= encoder("TemporalTransformer", "cls_TemporalTransformer", t, TEMPORAL_DEPTH)
    values = {}
    for path, shape in shapes.items():
        scale = 0.25 if path.endswith("kernel") else 0.125
        values[path] = path.endswith("scale") + scale * noise(path, *shape)
    return values


def encoder(name: str, cls_token: str, tokens: int, depth: int) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each parameter of an encoder."""
    width = DIM // HEADS
    shapes: dict[str, tuple[int, ...]] = {
        cls_token: (1, 1, DIM),
        f"{name}/posembed_input/pos_embedding": (1, tokens + 1, DIM),
        f"{name}/encoder_norm/scale": (DIM,),
        f"{name}/encoder_norm/bias": (DIM,),
    }
    for i in range(depth):
        block = f"{name}/encoderblock_{i}"
        attention, mlp = f"{block}/MultiHeadDotProductAttention_0", f"{block}/MlpBlock_0"
        for norm in (f"{block}/LayerNorm_0", f"{block}/LayerNorm_1"):
            shapes |= {f"{norm}/scale": (DIM,), f"{norm}/bias": (DIM,)}
        for part in ("query", "key", "value"):
            shapes |= {
                f"{attention}/{part}/kernel": (DIM, HEADS, width),
                f"{attention}/{part}/bias": (HEADS, width),
            }
        shapes |= {f"{attention}/out/kernel": (HEADS, width, DIM), f"{attention}/out/bias": (DIM,)}
        shapes |= {f"{mlp}/Dense_0/kernel": (DIM, MLP), f"{mlp}/Dense_0/bias": (MLP,)}
        shapes |= {f"{mlp}/Dense_1/kernel": (MLP, DIM), f"{mlp}/Dense_1/bias": (DIM,)}
    return shapes


def tree(flat: dict[str, Any]) -> dict[str, Any]:
    """Returns nested dicts from paths."""
    nested: dict[str, Any] = {}
    for path, value in flat.items():
        *above, last = path.split("/")
        node = nested
        for name in above:
            node = node.setdefault(name, {})
        node[last] = value
    return nested
