"""The demo data set: H.264 videos of motion that a model can classify only from the order of the frames.

A textured shape moves over a textured background. The eight classes form four pairs, and each class of a pair is
exactly the other one played backward: the same random draws give the same frames in reverse order. Shuffled frames
therefore do not reveal which class of a pair a video belongs to. The frame wraps around and the shape may be
anywhere at any time, so its position in a single frame does not reveal the direction of motion. (A frame's number
together with the size of the shape is a hint for approach and recede, and with its angle for the rotations.) A
mirrored video belongs to another class, so train without flips.
"""

import json
import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import av
import numpy as np
from numpy.typing import NDArray

from vivit_train.data.annotations.folder import read_folder
from vivit_train.data.annotations.table import Splits
from vivit_train.utils.errors import UserError
from vivit_train.utils.progress import tracked
from vivit_train.utils.text import printable

Array = NDArray[np.floating]
Path_T4 = Array  # per frame: x and y of the shape (in frame widths, y down), its angle, the log of its diameter
Video = NDArray[np.uint8]  # [T, H, W, 3], RGB
# Each pair is the smallest and the largest value. TRAVEL, TURN and GROWTH are the changes over a whole clip; their
# comments give the change per frame for 24 frames of 56 pixels.
TRAVEL = (0.5, 0.7)  # frame widths; 1.2 to 1.7 pixels per frame
TURN = (math.radians(190), math.radians(340))  # radians; 8 to 15 degrees per frame
ARM = 0.2  # the distance between the center of rotation and the center of the shape, in frame widths
TILT = (math.radians(-150), math.radians(-30))  # the arm's angle in the middle of the clip, near the top
GROWTH = (math.log(1.7), math.log(2.3))  # log of the scale factor; 2.3 to 3.7 % per frame
CENTRE = (0.0, 1.0)  # the center of rotation in the middle of the clip, in frame widths
DIAMETER = (0.32, 0.48)  # the shape's diameter in the middle of the clip, in frame widths
BRIGHTNESS = (140, 230)  # the mean of each color channel of the shape, which is lighter than the background
BACKGROUND_BRIGHTNESS = (30, 110)
CONTRAST = (0.3, 0.6)  # the contrast of the shape's texture
BACKGROUND_CONTRAST = (0.1, 0.25)
WAVES = 4  # the number of plane waves in a texture
WAVELENGTHS = (0.8, 2.0)  # the wavelengths of the shape's texture, in radii of the shape
BACKGROUND_WAVELENGTHS = (0.2, 0.8)  # the wavelengths of the background's texture, in frame widths
REACH = 1.3  # the largest distance of a point of a shape from the shape's center, in radii
FORWARD = {  # class -> the column of the path that changes, and the range of the change
    "move_right": (0, TRAVEL),
    "move_down": (1, TRAVEL),
    "rotate_clockwise": (2, TURN),  # with y down, angles grow clockwise
    "approach": (3, GROWTH),
}
BACKWARD = {
    "move_left": "move_right",
    "move_up": "move_down",
    "rotate_counterclockwise": "rotate_clockwise",
    "recede": "approach",
}
PARTNER: dict[str, str] = BACKWARD | {forward: backward for backward, forward in BACKWARD.items()}
CLASSES: tuple[str, ...] = tuple(sorted(PARTNER))
VERSION = 1  # Increase it when the rendering changes, so that older folders are not accepted.
MARKER = "demo.json"


def draw_path(label: str, num_frames: int, rng: np.random.Generator) -> Path_T4:
    """Draws the path of the shape in a clip of class `label`, [T, 4]."""
    column, change = FORWARD[BACKWARD.get(label, label)]
    middle = [*rng.uniform(*CENTRE, size=2), rng.uniform(*TILT), rng.uniform(*np.log(DIAMETER))]
    path = np.tile(middle, (num_frames, 1))
    path[:, column] += rng.uniform(*change) * np.linspace(-0.5, 0.5, num_frames)
    path[:, 0] += ARM * np.cos(path[:, 2])
    path[:, 1] += ARM * np.sin(path[:, 2])
    return path[::-1] if label in BACKWARD else path


class Texture:
    """A smooth texture, a random color plus a few random plane waves, that has no pixel grid of its own."""

    def __init__(
        self,
        brightness: tuple[float, float],
        contrast: tuple[float, float],
        wavelengths: tuple[float, float],
        rng: np.random.Generator,
    ) -> None:
        directions = rng.uniform(0, math.tau, WAVES)
        frequency = math.tau / rng.uniform(*wavelengths, WAVES)
        self.wave_2K = (np.stack([np.cos(directions), np.sin(directions)]) * frequency).astype(np.float32)
        self.phase_K = rng.uniform(0, math.tau, WAVES).astype(np.float32)
        colour_K3 = rng.normal(size=(WAVES, 3)) * 127 * rng.uniform(*contrast) / math.sqrt(WAVES)
        self.colour_K3 = colour_K3.astype(np.float32)
        self.mean_3 = rng.uniform(*brightness, 3).astype(np.float32)

    def __call__(self, points: Array) -> Array:
        """Returns the colors [..., 3] at the points [..., 2]."""
        return self.mean_3 + np.cos(points @ self.wave_2K + self.phase_K) @ self.colour_K3


def outline(angle: Array, rng: np.random.Generator) -> Array:
    """Returns the radius of a random shape at each angle; it is at most REACH.

    The shape is an ellipse, a rectangle, a polygon or a star.
    """
    kind, corners, flat = rng.integers(4), rng.integers(3, 6), rng.uniform(0.6, 0.9)
    if kind == 0:
        return 1.1 / np.hypot(np.cos(angle), np.sin(angle) / flat)
    if kind == 1:
        return 0.9 / np.maximum(np.abs(np.cos(angle)), np.abs(np.sin(angle)) / flat)
    half = math.pi / corners
    if kind == 2:
        return 1.2 * math.cos(half) / np.cos(angle % (2 * half) - half)
    return 0.9 + 0.3 * np.cos(corners * angle)


def render(path: Path_T4, size: int, rng: np.random.Generator) -> Video:
    """Renders a random shape that moves along `path` over a random background.

    The random draws do not depend on the path.
    """
    background = Texture(BACKGROUND_BRIGHTNESS, BACKGROUND_CONTRAST, BACKGROUND_WAVELENGTHS, rng)
    texture = Texture(BRIGHTNESS, CONTRAST, WAVELENGTHS, rng)
    pixel = (np.arange(size, dtype=np.float32) + 0.5) / size
    still = background(np.stack(np.meshgrid(pixel, pixel), axis=-1))
    video = np.tile(still.clip(0, 255).astype(np.uint8), (len(path), 1, 1, 1))

    x, y, angle, log_size = path.astype(np.float32).T[:, :, None, None]
    radius = np.exp(log_size) / 2
    dx, dy = (wrap(pixel - x) / radius, wrap(pixel[:, None] - y) / radius)
    near = dx * dx + dy * dy < REACH * REACH  # The shape covers few pixels, so this halves the time.
    t, row, column = np.nonzero(near)
    # r and phi are the polar coordinates of each pixel relative to the shape, which has radius 1 there.
    r = np.hypot(dx[t, 0, column], dy[t, row, 0])
    phi = np.arctan2(dy[t, row, 0], dx[t, 0, column]) - angle[t, 0, 0]
    edge_pixels = (outline(phi, rng) - r) * radius[t, 0, 0] * size
    cover = np.clip(edge_pixels + 0.5, 0, 1)[:, None]  # the edge is one pixel wide
    colours = texture(np.stack([r * np.cos(phi), r * np.sin(phi)], axis=-1))
    video[near] = (cover * colours + (1 - cover) * still[row, column]).clip(0, 255).astype(np.uint8)
    return video


def wrap(distance: Array) -> Array:
    """Returns the shortest distance in a frame that wraps around."""
    return (distance + 0.5) % 1 - 0.5


def write_video(path: Path, video: Video, fps: float) -> None:
    """Encodes `video` as H.264."""
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = "yuv420p"
        # "fastdecode" saves a quarter of the decoding time, which is about half of the training time on the demo.
        # Slower presets use x264's macroblock tree. It reads uninitialized memory if frames are this small, so the
        # same clip would not always give the same file.
        stream.options = {"crf": "18", "preset": "superfast", "tune": "fastdecode", "threads": "1"}
        for picture in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def make_video(
    folder: Path, split: str, label: str, number: int, *, size: int, num_frames: int, fps: float, seed: int
) -> None:
    """Renders a video of the demo and writes it to `folder`/<split>/<label>/<number>.mp4; see `make_demo`."""
    rng = np.random.default_rng([seed, *f"{split}/{label}/{number}".encode()])
    video = render(draw_path(label, num_frames, rng), size, rng)
    write_video(folder / split / label / f"{number:04d}.mp4", video, fps)


def make_demo(
    root: Path,
    *,
    size: int = 56,
    num_frames: int = 24,
    fps: float = 12,
    train_per_class: int = 128,
    val_per_class: int = 16,
    test_per_class: int = 32,
    seed: int = 0,
) -> None:
    """Creates `root`/{train,val,test}/<class>/<number>.mp4 unless they exist already.

    Each video depends only on (seed, split, class, number). The folder is renamed to `root` when it is complete,
    so a killed run leaves no partial data set, and several processes may create it at the same time.

    Args:
        root: The folder to create.
        size: The height and width of the videos in pixels, an even number for H.264.
        num_frames: The number of frames per video.
        fps: The number of frames per second.
        train_per_class, val_per_class, test_per_class: The number of videos per class in each split.
        seed: The seed of all random draws.

    Raises:
        UserError: If `root` contains something else, or if `size` is odd.
    """
    if size % 2:
        raise UserError(f"the demo's size is {size}, but H.264 needs an even number of pixels")
    counts = {"train": train_per_class, "val": val_per_class, "test": test_per_class}
    shape = {"size": size, "num_frames": num_frames, "fps": float(fps)}
    marker = json.dumps({"version": VERSION, **shape, "per_class": counts, "seed": seed})
    if _is_made(root, marker):
        return

    unfinished = root.with_name(f".{root.name}-{uuid4().hex[:8]}")
    names = [
        (split, label, number) for split, count in counts.items() for label in CLASSES for number in range(count)
    ]
    make = partial(make_video, unfinished, size=size, num_frames=num_frames, fps=fps, seed=seed)
    try:
        for split in counts:
            for label in CLASSES:
                (unfinished / split / label).mkdir(parents=True)
        with ThreadPoolExecutor() as pool:  # numpy and x264 release the GIL
            for _ in tracked(pool.map(lambda name: make(*name), names), f"making {printable(root)}", len(names)):
                pass
        (unfinished / MARKER).write_text(marker, encoding="utf-8")
        try:
            unfinished.rename(root)
        except OSError:
            if not _is_made(root, marker):  # another process may have created the folder first
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _is_made(root: Path, marker: str) -> bool:
    """Checks whether `root` is a complete demo; raises a UserError if it contains something else."""
    if not root.exists():
        return False
    found = root / MARKER
    if found.is_file() and found.read_text(encoding="utf-8") == marker:
        return True
    what = (
        f"a demo made with {found.read_text(encoding='utf-8')}"
        if found.is_file()
        else f"no complete demo ({MARKER} is missing)"
    )
    raise UserError(
        f"{root} contains {what}, but this run needs {marker}. Delete that folder or choose another data.root."
    )


def read_demo(root: str | Path, **annotations: Any) -> Splits:
    """Returns the splits of the demo, and creates its videos first if they do not exist."""
    make_demo(Path(root))
    return read_folder(root, **annotations)
