"""The demo data set: real H.264 videos of motion that only the order of the frames shows.

A textured shape moves over a textured background in one of eight ways, which are four pairs. Within a pair
each class is the other played backwards, exactly: the same draws give the same frames in reverse order. So
a video's frames, shuffled, say nothing about which of the two it is. Opposite borders touch and a shape may be
anywhere at any time: where it is in one frame does not tell a move from its partner. (With a frame's number, its
size says something of approach and recede, its slant of the turns, which all pass over the top.) Mirroring turns
one class into another: train without flips.
"""

import json
import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any
from uuid import uuid4

import av
import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from vivit_train.data.annotations.folder import read_folder
from vivit_train.data.annotations.table import Splits
from vivit_train.utils.errors import UserError

Array = NDArray[np.floating]
Path_T4 = Array  # per frame: the shape's x, y (frame widths, y down), angle, log of its diameter
Video = NDArray[np.uint8]  # [T, H, W, 3], RGB
# Change over a whole clip, smallest and largest; in 24 frames of 56 pixels this is per frame:
TRAVEL = (0.5, 0.7)  # frame widths: 1.2 to 1.7 pixels
TURN = (math.radians(190), math.radians(340))  # 8 to 15 degrees
ARM = 0.2  # frame widths from the point that a shape turns about to its centre
TILT = (math.radians(-150), math.radians(-30))  # of the arm halfway through: around the top
GROWTH = (math.log(1.7), math.log(2.3))  # 2.3 to 3.7 %
CENTRE = (0.0, 1.0)  # where the shape is halfway through, in frame widths
DIAMETER = (0.32, 0.48)  # and its size there
BRIGHTNESS = (140, 230)  # mean of each colour channel of the shape: lighter than
BACKGROUND_BRIGHTNESS = (30, 110)
CONTRAST = (0.3, 0.6)  # of the shape's texture
BACKGROUND_CONTRAST = (0.1, 0.25)
WAVES = 4  # in a texture
WAVELENGTHS = (0.8, 2.0)  # of the shape's texture, in its radii
BACKGROUND_WAVELENGTHS = (0.2, 0.8)  # in frame widths
REACH = 1.3  # no point of a shape is further from its centre, in radii
FORWARD = {  # class -> the column of the path that grows, and by how much
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
VERSION = 1  # raise it when the pictures change, so that older folders are not taken for these
MARKER = "demo.json"


def draw_path(label: str, num_frames: int, rng: np.random.Generator) -> Path_T4:
    """Where the shape is in each frame of a clip of class `label`: [T, 4]."""
    column, change = FORWARD[BACKWARD.get(label, label)]
    middle = [*rng.uniform(*CENTRE, size=2), rng.uniform(*TILT), rng.uniform(*np.log(DIAMETER))]
    path = np.tile(middle, (num_frames, 1))
    path[:, column] += rng.uniform(*change) * np.linspace(-0.5, 0.5, num_frames)
    path[:, 0] += ARM * np.cos(path[:, 2])
    path[:, 1] += ARM * np.sin(path[:, 2])
    return path[::-1] if label in BACKWARD else path


class Texture:
    """A random colour with a few random plane waves on it: smooth, so that it has no pixel grid of its own."""

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
        """Colours [..., 3] at points [..., 2]."""
        return self.mean_3 + np.cos(points @ self.wave_2K + self.phase_K) @ self.colour_K3


def outline(angle: Array, rng: np.random.Generator) -> Array:
    """The radius, towards each angle, of a random shape: ellipse, rectangle, polygon or star; at most REACH."""
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
    """Draw a random shape on a random background along `path`. The draws do not depend on the path."""
    background = Texture(BACKGROUND_BRIGHTNESS, BACKGROUND_CONTRAST, BACKGROUND_WAVELENGTHS, rng)
    texture = Texture(BRIGHTNESS, CONTRAST, WAVELENGTHS, rng)
    pixel = (np.arange(size, dtype=np.float32) + 0.5) / size
    still = background(np.stack(np.meshgrid(pixel, pixel), axis=-1))
    video = np.tile(still.clip(0, 255).astype(np.uint8), (len(path), 1, 1, 1))

    x, y, angle, log_size = path.astype(np.float32).T[:, :, None, None]
    radius = np.exp(log_size) / 2
    dx, dy = (wrap(pixel - x) / radius, wrap(pixel[:, None] - y) / radius)
    near = dx * dx + dy * dy < REACH * REACH  # the shape is on few of the pixels: twice as fast
    t, row, column = np.nonzero(near)
    # each pixel in the shape's own polar coordinates, where it has radius 1 and stands still
    r = np.hypot(dx[t, 0, column], dy[t, row, 0])
    phi = np.arctan2(dy[t, row, 0], dx[t, 0, column]) - angle[t, 0, 0]
    edge_pixels = (outline(phi, rng) - r) * radius[t, 0, 0] * size
    cover = np.clip(edge_pixels + 0.5, 0, 1)[:, None]  # an edge one pixel wide
    colours = texture(np.stack([r * np.cos(phi), r * np.sin(phi)], axis=-1))
    video[near] = (cover * colours + (1 - cover) * still[row, column]).clip(0, 255).astype(np.uint8)
    return video


def wrap(distance: Array) -> Array:
    """The shortest way, round a frame whose opposite borders touch."""
    return (distance + 0.5) % 1 - 0.5


def write_video(path: Path, video: Video, fps: float) -> None:
    """Encode `video` as H.264."""
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = "yuv420p"
        # fastdecode: decoding is about half of the work of training on these; it saves a quarter of that.
        # slower presets use x264's macroblock tree, which reads uninitialised memory on frames as small as
        # these: the same clip would not always be the same file
        stream.options = {"crf": "18", "preset": "superfast", "tune": "fastdecode", "threads": "1"}
        for picture in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


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
    """Make `root`/{train,val,test}/<class>/<number>.mp4, unless it is there already.

    Each video is a function of (seed, split, class, number) alone. The folder appears under its name only
    when it is whole, so a killed run leaves none and several processes may ask for it at once.

    Args:
        root: folder to make.
        size: height and width of the videos in pixels; even, for H.264.
        num_frames: frames in each video.
        fps: frames per second.
        train_per_class, val_per_class, test_per_class: videos of each class in each split.
        seed: of all random draws.

    Raises:
        UserError: `root` holds something else, or `size` is odd.
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

    def make(name: tuple[str, str, int]) -> None:
        split, label, number = name
        rng = np.random.default_rng([seed, *f"{split}/{label}/{number}".encode()])
        video = render(draw_path(label, num_frames, rng), size, rng)
        write_video(unfinished / split / label / f"{number:04d}.mp4", video, fps)

    try:
        for split in counts:
            for label in CLASSES:
                (unfinished / split / label).mkdir(parents=True)
        with ThreadPoolExecutor() as pool:  # numpy and x264 release the GIL
            for _ in track(pool.map(make, names), f"Making {root}", total=len(names)):
                pass
        (unfinished / MARKER).write_text(marker, encoding="utf-8")
        try:
            unfinished.rename(root)
        except OSError:
            if not _is_made(root, marker):  # another process was faster, or else this is a real failure
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _is_made(root: Path, marker: str) -> bool:
    if not root.exists():
        return False
    found = root / MARKER
    if found.is_file() and found.read_text(encoding="utf-8") == marker:
        return True
    what = (
        f"a demo made with {found.read_text(encoding='utf-8')}"
        if found.is_file()
        else f"no whole demo ({MARKER} is missing)"
    )
    raise UserError(
        f"{root} holds {what}, but this run asks for {marker}. Delete that folder or choose another data.root."
    )


def read_demo(root: str | Path, **annotations: Any) -> Splits:
    """The demo's splits, made first where they are not there yet."""
    make_demo(Path(root))
    return read_folder(root, **annotations)
