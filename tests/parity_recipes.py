"""How far clips, pixels and steps are from the authors' rules, for the tests and for docs/fidelity.md."""

import statistics
import time
from fractions import Fraction
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import numpy as np
import parity
import torch
import torch.nn.functional as F
from av import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from omegaconf import OmegaConf
from torch import Tensor

import vivit_train
from vivit_train.data.sampling import Sampling, random_clip, uniform_clips
from vivit_train.data.transforms import crop_views
from vivit_train.models.weights.scenic import load_scenic
from vivit_train.training.losses import CrossEntropy
from vivit_train.training.optim import cosine, warmup_cosine

SGD = {"optimizer._target_": "torch.optim.SGD", "optimizer.momentum": 0.9, "optimizer.weight_decay": 0.0}
SAME = {  # Table 7: what all data sets share
    **SGD,
    "global_batch_size": 64,
    "scheduler._target_": "vivit_train.training.optim.cosine",
    "scheduler.warmup_epochs": 2.5,
    "trainer.gradient_clip_val": 1.0,
    "data.frames": 32,
    "data.short_side": 256,
    "data.crop": 224,
    "data.flip": 0.5,
    "data.scale_jitter": [0.9, 1.33],
    "cutmix": 0.0,
}
COLUMNS = (
    *("optimizer.lr", "trainer.max_epochs", "data.color_jitter", "data.randaugment", "model.drop_path"),
    *("loss.label_smoothing", "mixup", "eval.views"),
)
TABLE_7: dict[str, tuple[Any, ...]] = {
    "kinetics400": (0.1, 30, 0.8, None, 0.0, 0.0, 0.0, "4x3"),
    "kinetics600": (0.1, 30, 0.8, None, 0.0, 0.0, 0.0, "4x3"),
    "moments_in_time": (0.25, 10, 0.8, None, 0.0, 0.0, 0.0, "4x1"),
    "epic_kitchens100": (0.5, 50, 0.0, [2, 15], 0.2, 0.2, 0.1, "4x1"),
    "something_something_v2": (0.5, 35, 0.0, [2, 20], 0.3, 0.3, 0.3, "4x1"),
}
ACCURATE = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


def training_starts() -> tuple[int, int]:
    """How many first and last starts are not the authors' 0 and L - (n - 1)s - 1, and how many there are."""
    frames, wrong, total = 32, 0, 0
    for stride, num_frames in product((1, 2, 4), range(1, 400)):
        last = num_frames - (frames - 1) * stride - 1
        if last < 0:
            continue
        for rand, start in ((0.0, 0), (1 - 1e-9, last)):
            clip = random_clip(num_frames, frames, float(stride), rand)
            wrong += clip.tolist() != list(range(start, start + frames * stride, stride))
            total += 1
    return wrong, total


def middle_crops() -> tuple[int, int]:
    """How many middle crops do not start at the authors' ceil((side - crop) / 2), and how many there are."""
    wrong, crop, shapes = (
        0,
        16,
        [(24, width) for width in range(24, 44)] + [(height, 25) for height in range(26, 44)],
    )
    for height, width in shapes:
        picture = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
        video = torch.cat([picture, picture[:1]]).to(torch.uint8)[None]
        _, middle, _ = crop_views(video, crop, min(height, width), "keep_ratio", 3)
        wrong += middle[0, :2, 0, 0].tolist() != [-(-(height - crop) // 2), -(-(width - crop) // 2)]
    return wrong, len(shapes)


def test_frames() -> tuple[int, int]:
    """How many frame numbers of test clips are not the authors', and how many there are.

    They start at int(linspace(0, max(0, L - n s), k)) and go back to the first frame at the end of the video.
    """
    frames, wrong, total = 32, 0, 0
    for stride, num_frames in product((1, 2, 4), range(20, 400, 19)):
        starts = np.linspace(0, max(0, num_frames - frames * stride), 4).astype(np.int32)
        theirs = (starts[:, None] + np.arange(frames) * stride) % num_frames
        wrong += int((np.stack(uniform_clips(num_frames, frames, stride, 4)) != theirs).sum())
        total += theirs.size
    return wrong, total


def table_7() -> tuple[int, int]:
    """How many values of the recipes are not those of the paper's Table 7, and how many there are."""
    wrong = total = 0
    for recipe, values in TABLE_7.items():
        cfg = vivit_train.compose(f"data={recipe}", run_dir="none")
        for key, value in {**SAME, **dict(zip(COLUMNS, values, strict=True))}.items():
            wrong += OmegaConf.select(cfg, key) != value
            total += 1
    return wrong, total


def span_s(stride: int, fps: float) -> float:
    """The seconds that a clip of 32 frames spans."""
    return Sampling(32, stride).span_s(fps)


def half_step_of_warmup() -> float:
    """The largest difference of the learning rate, as a share of its peak: they warm up for 14,187.5 steps."""
    steps_per_epoch = 363213 // 64
    total = 30 * steps_per_epoch
    ours, theirs = cosine(total, steps_per_epoch, 2.5), warmup_cosine(2.5 * steps_per_epoch, total)
    return max(abs(ours(step) - theirs(step)) for step in range(total))


def rgb_levels() -> tuple[float, float]:
    """The mean difference from the exact RGB of BT.601, in levels: as we read it, and accurately rounded.

    The chroma of each frame is constant, so how it is interpolated does not matter.
    """
    luma = np.tile(np.arange(40, 216, dtype=np.uint8), (64, 1))
    fast, accurate = [], []
    for u, v in product((112, 128, 144), repeat=2):
        planes = [luma, *(np.full((32, luma.shape[1] // 2), value, np.uint8) for value in (u, v))]
        frame = VideoFrame.from_ndarray(
            np.concatenate([plane.reshape(-1) for plane in planes]).reshape(96, -1), "yuv420p"
        )
        y, cb, cr = (luma - 16.0) * 255 / 219, (u - 128) * 255 / 224, (v - 128) * 255 / 224
        exact = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], -1)
        inside = (exact > 2) & (exact < 253)
        for levels, flags in ((fast, Interpolation.BICUBIC), (accurate, ACCURATE)):
            rgb = VideoReformatter().reformat(frame, format="rgb24", interpolation=flags, threads=1).to_ndarray()
            levels.append((rgb - exact)[inside].mean())
    return float(np.mean(fast)), float(np.mean(accurate))


def accurate_rgb_cost(rounds: int = 9) -> float:
    """How many times as long reading a clip of 340x256 takes with accurate rounding: the median of some rounds."""
    with TemporaryDirectory() as folder, av.open(str(parity.GOLDENS / "preprocessing/made.mp4")) as source:
        pictures = [frame.reformat(340, 256) for frame in source.decode(video=0)]
        path = Path(folder) / "clip.mp4"
        with av.open(str(path), "w") as out:
            stream: Any = out.add_stream("libx264", rate=25, options={"crf": "23"})
            stream.width, stream.height, stream.pix_fmt = 340, 256, "yuv420p"
            for number in range(64):
                picture = pictures[number % len(pictures)]
                picture.pts, picture.time_base = number, Fraction(1, 25)
                out.mux(stream.encode(picture))
            out.mux(stream.encode(None))
        read(path, ACCURATE)
        ratios = [read(path, ACCURATE) / read(path, Interpolation.BICUBIC) for _ in range(rounds)]
    return statistics.median(ratios)


def read(path: Path, flags: int) -> float:
    """The processor seconds that decoding 64 frames and converting every second one to RGB takes."""
    start_s, reformat = time.process_time(), VideoReformatter().reformat
    with av.open(str(path)) as file:
        file.streams.video[0].thread_count = 1
        for number, frame in enumerate(file.decode(video=0)):
            if number % 2 == 0:
                reformat(frame, format="rgb24", interpolation=flags, threads=1).to_ndarray()
    return time.process_time() - start_s


def clipping_order() -> tuple[float, float]:
    """The norm of the authors' step, clipped on each device before the mean, and its cosine with ours.

    Each device has one clip, and all gradients are larger than 1, so ours has norm 1.
    """
    arrays, config, settings = parity.scenic("trainstep_factorized_encoder")
    net = load_scenic(parity.part(arrays, "params0/"), **settings).double()
    video = torch.from_numpy(arrays["step0/video"]).double().permute(0, 4, 1, 2, 3)
    target = F.one_hot(torch.from_numpy(arrays["step0/label"]), config["num_classes"]).double()
    grads = [gradient(net, clip, label) for clip, label in zip(video.split(1), target.split(1), strict=True)]
    assert all(grad.norm() > 1 for grad in grads)
    before = torch.stack([grad / grad.norm().clamp(min=1) for grad in grads]).mean(0)
    after = torch.stack(grads).mean(0)
    assert after.norm() > 1
    return float(before.norm()), float(F.cosine_similarity(before, after, dim=0))


def gradient(net: torch.nn.Module, video: Tensor, target: Tensor) -> Tensor:
    """The gradient of the loss, as one vector."""
    net.zero_grad()
    CrossEntropy(0.0)(net(video), target).backward()
    return torch.cat([parameter.grad.flatten() for parameter in net.parameters() if parameter.grad is not None])
