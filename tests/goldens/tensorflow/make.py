"""Writes colors.npz beside this file: the authors' color operations, computed by TensorFlow's own ops.

The operations follow the published definitions of AutoAugment and DMVR; the code is ours. The clip is two frames
of a video, cut to 36x48 pixels, given as uint8 [T, H, W, C] in an .npy file. The project needs no TensorFlow:

    python -m venv /tmp/tf && /tmp/tf/bin/pip install tensorflow-cpu==2.21.0
    /tmp/tf/bin/python tests/goldens/tensorflow/make.py CLIP.npy

Without an argument, the clip of the existing colors.npz is used again.
"""

import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

FILE = Path(__file__).parent / "colors.npz"
JITTER = (-30.0, 1.3, 0.7, 0.15)  # brightness of 255, saturation, contrast, hue
JITTERS = {"jitter": JITTER, "jitter_up": (25.0, 0.65, 1.35, -0.18)}


def mixed(start, end, factor):
    start, end = tf.cast(start, tf.float32), tf.cast(end, tf.float32)
    return tf.cast(tf.clip_by_value(start + factor * (end - start), 0.0, 255.0), tf.uint8)


def auto_contrast(x, level):
    low, high = (tf.cast(f(x, axis=(0, 1)), tf.float32) for f in (tf.reduce_min, tf.reduce_max))
    scale = 255.0 / (high - low)
    return tf.cast(tf.clip_by_value(tf.cast(x, tf.float32) * scale + (-low * scale), 0.0, 255.0), tf.uint8)


def equalize(x, level):
    channels = []
    for c in range(3):
        channel = tf.cast(x[..., c], tf.int32)
        count = tf.histogram_fixed_width(channel, [0, 255], nbins=256)
        used = tf.boolean_mask(count, count > 0)
        step = (tf.reduce_sum(used) - used[-1]) // 255
        table = (tf.cumsum(count, exclusive=True) + step // 2) // step
        table = tf.concat([[0], table[1:]], 0)
        channels.append(tf.gather(tf.clip_by_value(table, 0, 255), channel))
    return tf.cast(tf.stack(channels, -1), tf.uint8)


def invert(x, level):
    return 255 - x


def posterize(x, level):
    shift = tf.constant(8 - int(level * 4), tf.uint8)
    return tf.bitwise.left_shift(tf.bitwise.right_shift(x, shift), shift)


def solarize(x, level):
    return tf.where(x < int(level * 256), x, 255 - x)  # the threshold becomes a uint8 and wraps


def color(x, level):
    return mixed(tf.image.grayscale_to_rgb(tf.image.rgb_to_grayscale(x)), x, level * 1.8 + 0.1)


def contrast(x, level):
    gray = tf.cast(tf.image.rgb_to_grayscale(x), tf.int32)
    pixels = tf.reduce_sum(tf.histogram_fixed_width(gray, [0, 255], nbins=256))
    value = tf.cast(tf.clip_by_value(tf.cast(pixels, tf.float32) / 256.0, 0.0, 255.0), tf.uint8)
    return mixed(tf.fill(tf.shape(x), value), x, level * 1.8 + 0.1)


def brightness(x, level):
    return mixed(tf.zeros_like(x), x, level * 1.8 + 0.1)


def sharpness(x, level):
    kernel = np.ones((3, 3, 3, 1), np.float32)
    kernel[1, 1] = 5
    picture = tf.cast(x, tf.float32)[None]
    smooth = tf.nn.depthwise_conv2d(picture, tf.constant(kernel) / 13.0, [1, 1, 1, 1], "VALID")[0]
    smooth = tf.cast(tf.clip_by_value(smooth, 0.0, 255.0), tf.uint8)
    inner = mixed(smooth, x[1:-1, 1:-1], level * 1.8 + 0.1).numpy()
    sharp = x.numpy()
    sharp[1:-1, 1:-1] = inner
    return tf.constant(sharp)


def solarize_add(x, level):
    added = tf.clip_by_value(tf.cast(x, tf.int32) + int(level * 110), 0, 255)
    return tf.where(x < 128, tf.cast(added, tf.uint8), x)


OPERATIONS = [
    auto_contrast,
    equalize,
    invert,
    posterize,
    solarize,
    color,
    contrast,
    brightness,
    sharpness,
    solarize_add,
]


def jittered(clip, brightness, saturation, contrast, hue):
    video = tf.cast(clip, tf.float32) / 255.0
    video = tf.image.adjust_brightness(video, brightness / 255.0)
    video = tf.image.adjust_saturation(video, saturation)
    video = tf.image.adjust_contrast(video, contrast)
    video = tf.image.adjust_hue(video, hue)
    return tf.clip_by_value(video, 0.0, 1.0)


def main():
    clip = np.load(sys.argv[1] if len(sys.argv) > 1 else FILE)
    clip = clip if isinstance(clip, np.ndarray) else clip["clip"]
    frames, height, width, _ = clip.shape
    arrays = {"clip": clip}
    stack = tf.constant(clip.reshape(frames * height, width, 3))
    for magnitude in (3, 15, 20):
        for operation in OPERATIONS:
            fixed = operation in (auto_contrast, equalize, invert)
            if not fixed or magnitude == 15:
                result = operation(stack, magnitude / 10).numpy().reshape(clip.shape)
                arrays[f"{operation.__name__}/{magnitude}"] = result
    for name, amounts in JITTERS.items():
        video = jittered(clip, *amounts)
        arrays[f"{name}/amounts"] = np.array(amounts)
        arrays[name] = (video.numpy() * 255).astype(np.float16)
    gray = tf.image.rgb_to_grayscale(tf.cast(clip, tf.float32))[..., 0].numpy()
    arrays["gray"] = gray.astype(np.float16)
    for size in ((27, 36), (54, 72)):
        resized = tf.image.resize(clip[:1], size, method="bilinear")
        arrays[f"resized/{size[0]}x{size[1]}"] = tf.cast(resized, tf.uint8).numpy()
    np.savez_compressed(FILE, **arrays)
    print(f"{FILE}: {FILE.stat().st_size} bytes, TensorFlow {tf.__version__}")


if __name__ == "__main__":
    main()
