"""Writes pixels.npz beside this file: frames of full-size videos on their way to the model, by two other programs.

TensorFlow takes the authors' way: the short side to 256, then the center crop, three crops, or in training a scale
jitter and a crop. Hugging Face's image processor takes its own. The code is ours; no video is stored but made.mp4,
which this script makes if it is missing. The project needs neither of the two:

    python -m venv /tmp/tf && /tmp/tf/bin/pip install tensorflow-cpu==2.21.0 "transformers<5" pillow av
    /tmp/tf/bin/python tests/goldens/preprocessing/make.py [VIDEO...]

Of each video, the frames at a third and at two thirds are taken, and of each result every eleventh row and column.
"""

import sys
from pathlib import Path

import av
import numpy as np
import tensorflow as tf
from transformers import VivitImageProcessor

FOLDER = Path(__file__).parent
MADE, FILE = FOLDER / "made.mp4", FOLDER / "pixels.npz"
SIDE, CROP, KEPT = 256, 224, 11
JITTER, PLACE = (1.21, 0.97), (40, 20)  # scale of height and width; top and left of the crop


def make_video():
    """Writes six frames of 640x360: shapes with sharp edges and colors, which move."""
    y, x = np.mgrid[:360, :640]
    with av.open(str(MADE), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"crf": "30", "preset": "veryslow"})
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
        for t in range(6):
            rings = np.hypot(x - 200 - 6 * t, y - 170) // 9 % 2
            bars = (x + 2 * y + 5 * t) // 13 % 2
            picture = np.stack([60 + 150 * rings, 200 - 120 * bars, 40 + 80 * rings + 90 * bars], -1)
            picture[:, 480:] = (y[:, 480:, None] + [0, 60, 120]) * 255 // 480 % 256
            frame = av.VideoFrame.from_ndarray(picture.astype(np.uint8), "rgb24")
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def frames_of(path):
    """Returns two frames in their full size, [2, H, W, 3], and their numbers."""
    with av.open(str(path)) as file:
        stream = file.streams.best("video")
        stream.thread_count = 1
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(stream)]
    numbers = [len(frames) // 3, 2 * len(frames) // 3]
    return np.stack([frames[i] for i in numbers]), numbers


def resize(video, height, width):
    return tf.cast(tf.image.resize(video, (height, width)), tf.uint8)


def authors(video):
    """Returns what the authors' steps make of a video, by name."""
    height, width = video.shape[1:3]
    height, width = max(SIDE, height * SIDE // width), max(SIDE, width * SIDE // height)
    small = resize(video, height, width) if (height, width) != video.shape[1:3] else tf.constant(video)
    found = {"center": tf.image.resize_with_crop_or_pad(small, CROP, CROP)}
    rows, columns = -(-(height - CROP) // 2), -(-(width - CROP) // 2)
    for name, share in (("first", 0), ("middle", 1), ("last", 2)):
        top = (0, rows, height - CROP)[share] if height > width else rows
        left = columns if height > width else (0, columns, width - CROP)[share]
        found[name] = small[:, top : top + CROP, left : left + CROP]
    jittered = resize(small, int(np.float32(JITTER[0]) * height), int(np.float32(JITTER[1]) * width))
    top, left = PLACE
    found["train"] = jittered[:, top : top + CROP, left : left + CROP]
    return {name: value.numpy() for name, value in found.items()}


def main():
    if not MADE.is_file():
        make_video()
    processor = VivitImageProcessor(do_normalize=False, do_rescale=False, offset=False)
    arrays = {}
    for path in map(Path, [MADE, *sys.argv[1:]]):
        video, numbers = frames_of(path)
        results = {
            "huggingface": processor(list(video), return_tensors="np")["pixel_values"][0].transpose(0, 2, 3, 1)
        }
        results |= authors(video)
        arrays[f"{path.name}/frames"] = np.array(numbers)
        for name, pixels in results.items():
            assert pixels.shape[1:3] == (CROP, CROP), (name, pixels.shape)
            arrays[f"{path.name}/{name}"] = pixels[:, ::KEPT, ::KEPT].astype(np.uint8)
    np.savez_compressed(FILE, **arrays)
    print(f"{FILE}: {FILE.stat().st_size} bytes; {MADE.stat().st_size} bytes; TensorFlow {tf.__version__}")


if __name__ == "__main__":
    main()
