"""How far our pixels are from TensorFlow's and Hugging Face's, from a full-size file to the model's input.

goldens/preprocessing/make.py wrote theirs. made.mp4 is beside them; the other videos are in ../shared.
"""

import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import median

import numpy as np
import timm
import torch
from helpers import SHARED
from numpy.typing import NDArray
from torch import Tensor

from vivit_train.data.transforms import ClipParams, TrainTransform, crop_views, seeded
from vivit_train.data.video.decode import read_frames
from vivit_train.data.video.resize import Resize
from vivit_train.data.video.scan import display_shape, timeline
from vivit_train.models.weights.timm_vit import read_weights

FOLDER = Path(__file__).parent / "goldens/preprocessing"
SIDE, CROP, KEPT = 256, 224, 11
JITTER, PLACE = (1.21, 0.97), (40, 20)  # of make.py
RESIZES: tuple[Resize, Resize] = ("fast", "authors")


@cache
def goldens() -> dict[str, NDArray[np.uint8]]:
    with np.load(FOLDER / "pixels.npz") as file:
        return {name: file[name] for name in file.files}


def videos() -> list[Path]:
    """Returns the paths of the videos that are here."""
    names = dict.fromkeys(name.partition("/")[0] for name in goldens())
    found = [FOLDER / "made.mp4", *(SHARED / "videos").rglob("*.*")]
    return [path for name in names for path in found if path.name == name]


def size(path: Path) -> tuple[int, int]:
    return display_shape(str(path)).size


def ours(path: Path, resize: Resize) -> dict[str, Tensor]:
    """Returns our views of the frames that make.py took, uint8 [2, C, 224, 224] by name."""
    numbers = goldens()[f"{path.name}/frames"].tolist()
    frames_THWC = read_frames(path, numbers, short_side=SIDE, resize=resize)
    video_TCHW = torch.from_numpy(frames_THWC).permute(0, 3, 1, 2)
    (center,) = crop_views(video_TCHW, CROP, SIDE, "keep_ratio", 1, resize)
    first, middle, last = crop_views(video_TCHW, CROP, SIDE, "keep_ratio", 3, resize)
    views = {"center": center, "first": first, "middle": middle, "last": last, "huggingface": center}
    # The box that their crop shows, in whole pixels.
    sides = video_TCHW.shape[-2:]
    scales = [
        int(np.float32(j) * (side * SIDE // min(sides))) / side for j, side in zip(JITTER, sides, strict=True)
    ]
    top, left = (round(start / scale) for start, scale in zip(PLACE, scales, strict=True))
    params = ClipParams(top, left, *(round(CROP / scale) for scale in scales), flipped=False, seed=0)
    transform = TrainTransform(CROP, SIDE, "keep_ratio", None, 0.0, 0.0, None, resize=resize)
    return views | {"train": transform.finish(params.cut(video_TCHW), params)}


def errors(path: Path, resize: Resize) -> dict[str, tuple[float, int]]:
    """Returns the mean and the largest difference of each view, of 255, by the name that make.py gave it."""
    found = {}
    for name, view_TCHW in ours(path, resize).items():
        theirs = goldens()[f"{path.name}/{name}"].astype(np.int64)
        error = np.abs(view_TCHW.permute(0, 2, 3, 1)[:, ::KEPT, ::KEPT].numpy().astype(np.int64) - theirs)
        found[name] = error.mean(), int(error.max())
    return found


def cost(path: Path, rounds: int = 7) -> tuple[float, float]:
    """Returns how many times as long a test clip and a training clip take with "authors": medians of some rounds.

    A clip has 32 frames at stride 2. The training clip is resized on the CPU, without color jitter.
    """
    numbers = np.arange(0, 64, 2) % timeline(str(path)).num_frames

    def test_clip(resize: Resize) -> None:
        read_frames(path, numbers, short_side=SIDE, resize=resize)

    def training_clip(resize: Resize) -> None:
        transform, drawn = TrainTransform(CROP, SIDE, "keep_ratio", (0.9, 1.33), 0.5, 0.0, None, resize=resize), []

        def cut(height: int, width: int) -> tuple[int, int, int, int]:
            with seeded(0):
                drawn.append(transform.draw(height, width))
            return drawn[0][:4]

        frames_THWC = read_frames(path, numbers, short_side=SIDE, resize=resize, cut=cut)
        transform.finish(torch.from_numpy(frames_THWC).permute(0, 3, 1, 2), drawn[0])

    def seconds(clip: Callable[[Resize], None], resize: Resize) -> float:
        start_s = time.process_time()
        clip(resize)
        return time.process_time() - start_s

    ratios = []
    for clip in (test_clip, training_clip):
        clip("authors")
        ratios.append(median(seconds(clip, "authors") / seconds(clip, "fast") for _ in range(rounds)))
    return ratios[0], ratios[1]


def accuracies(shared: Path) -> dict[tuple[Resize, Resize], float]:
    """Returns the top-1 of a linear classifier on real clips, by how its training and its test frames are resized.

    It is a ridge regression on DeiT-Ti's features of four frames of each clip of UT-Interaction.
    """
    root = shared / "videos/ut_interaction"
    vit = timm.create_model("deit_tiny_patch16_224", pretrained=False, act_layer="gelu_tanh").eval()
    vit.load_state_dict(read_weights(str(shared / "weights/deit_tiny_patch16_224.fp16.safetensors")))
    features: dict[tuple[str, Resize], Tensor] = {}
    labels: dict[str, Tensor] = {}
    for split in ("train", "test"):
        rows = [line.rsplit(maxsplit=1) for line in (root / f"{split}.csv").read_text().splitlines()]
        labels[split] = torch.tensor([int(label) for _, label in rows])
        for resize in RESIZES:
            features[split, resize] = torch.stack([clip_features(vit, root / path, resize) for path, _ in rows])
    found = {}
    for trained in RESIZES:
        mean, std = features["train", trained].mean(0), features["train", trained].std(0)
        x, target = (
            (features["train", trained] - mean) / std,
            torch.nn.functional.one_hot(labels["train"]).double(),
        )
        dual = torch.linalg.solve(x @ x.T + x.shape[1] * torch.eye(len(x), dtype=torch.float64), target)
        for tested in RESIZES:
            scores = (features["test", tested] - mean) / std @ x.T @ dual
            found[trained, tested] = float((scores.argmax(1) == labels["test"]).double().mean())
    return found


def clip_features(vit: torch.nn.Module, path: Path, resize: Resize) -> Tensor:
    """Returns DeiT-Ti's class token of four frames, one vector."""
    numbers = np.linspace(0, timeline(str(path)).num_frames - 1, 6)[1:-1].astype(int)
    frames_THWC = read_frames(path, numbers, short_side=SIDE, resize=resize)
    (view,) = crop_views(torch.from_numpy(frames_THWC).permute(0, 3, 1, 2), CROP, SIDE, "keep_ratio", 1, resize)
    with torch.inference_mode():
        return vit.forward_features(view / 127.5 - 1)[:, 0].flatten().double()  # type: ignore[operator]
