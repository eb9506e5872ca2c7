"""What a folder with an exported model says about it: preprocessing, labels, model card and an example."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vivit_train.data.datamodule import VideoDataModule
from vivit_train.data.transforms import ResizeMode
from vivit_train.training.module import VideoClassifier
from vivit_train.utils.arguments import shown
from vivit_train.utils.files import read_text
from vivit_train.utils.json_file import parse_json
from vivit_train.utils.text import plural, printable, printable_lines

RGB = tuple[float, float, float]


@dataclass(frozen=True)
class Preprocessing:
    """How a clip is made from a video.

    Attributes:
        frames: The number of frames of a clip.
        stride: The distance between two frames of a clip, in frames of the video, or of `fps`.
        fps: The frame rate to which the stride refers; None is that of the video.
        sampling: "window" takes frames at the stride, from the middle of the video; "segments" takes the frame in
            the middle of each of `frames` equal parts of the video.
        padding: What fills the window of a shorter video: "wrap" starts it again, "repeat_last" repeats its last
            frame, and "black" appends black frames.
        short_side: The pixels to which the short side of a frame is resized.
        resize_mode: "keep_ratio", or "stretch", which resizes both sides to `short_side`.
        crop: The pixels of the square in the center.
        mean: The per-channel mean of the normalization, for pixels in [0, 1].
        std: The per-channel standard deviation of the normalization, for pixels in [0, 1].
        classes: The class names of each head in the order of the logits. A single head has the name "".
        multi_label: Whether a video may have any number of classes.
    """

    frames: int
    stride: int
    fps: float | None
    sampling: str
    padding: str
    short_side: int
    resize_mode: ResizeMode
    crop: int
    mean: RGB
    std: RGB
    classes: Mapping[str, Sequence[str]]
    multi_label: bool

    @classmethod
    def of(cls, task: VideoClassifier, data: VideoDataModule) -> "Preprocessing":
        mean, std = (tuple((v.flatten() / 255).tolist()) for v in (task.mean, task.std))
        clip = data.sampling
        classes = {head: list(names) for head, names in task.classes.items()}
        return cls(
            frames=clip.frames,
            stride=clip.stride,
            fps=clip.fps,
            sampling=clip.kind,
            padding=clip.padding,
            short_side=data.short_side,
            resize_mode=data.resize_mode,
            crop=data.crop,
            mean=mean,
            std=std,
            classes=classes,
            multi_label=task.multi_label,
        )

    @property
    def statistics(self) -> tuple[RGB, RGB]:
        """The mean and the standard deviation."""
        return self.mean, self.std

    def write(self, folder: Path) -> None:
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False)
        # Halves of characters become JSON's own escapes.
        (folder / "preprocessing.json").write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


EXAMPLE = '''"""Prints the most probable classes of a video: python example.py VIDEO. It needs {packages}."""

import json
import sys
from pathlib import Path

import av
import numpy as np
{imports}
folder = Path(__file__).parent
settings = json.loads((folder / "preprocessing.json").read_text(encoding="utf-8"))
{load}

def read_clip(path: str) -> np.ndarray:
    """Returns one clip from the middle of a video, uint8 [T, C, H, W]."""
    frames, short_side, crop = settings["frames"], settings["short_side"], settings["crop"]
    with av.open(path) as container:
        stream = container.streams.video[0]
        rate = float(stream.average_rate)
        images = []
        for frame in container.decode(stream):
            shortest = min(frame.width, frame.height)
            size = [short_side * side // shortest for side in (frame.width, frame.height)]
            if settings["resize_mode"] == "stretch":
                size = [short_side, short_side]
            image = frame.reformat(*size, format="rgb24").to_ndarray()
            top, left = (image.shape[0] - crop) // 2, (image.shape[1] - crop) // 2
            square = image[top : top + crop, left : left + crop]
            images.append(np.rot90(square, frame.rotation // 90))  # upright, as a player shows it
    count = len(images)
    if settings["sampling"] == "segments":
        numbers = np.floor((np.arange(frames) + 0.5) * count / frames).astype(int)
    else:
        step = rate / settings["fps"] if settings["fps"] else settings["stride"]
        start = max(0, int(count - frames * step)) // 2
        numbers = np.floor(start + step * np.arange(frames) + 1e-6).astype(int)
    if settings["padding"] == "wrap":
        numbers %= count
    else:
        images.append(images[-1] * (settings["padding"] == "repeat_last"))
        numbers = np.minimum(numbers, count)
    return np.stack([images[i] for i in numbers]).transpose(0, 3, 1, 2)


clips = read_clip(sys.argv[1])[None]
{run}
start = 0
for head, names in settings["classes"].items():
    scores = logits[start : start + len(names)]
    start += len(names)
    if settings["multi_label"]:
        probabilities = 1 / (1 + np.exp(-scores))
    else:
        probabilities = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    for k in probabilities.argsort()[::-1][:5]:
        print(*filter(None, [head, names[k], f"{{probabilities[k]:.3f}}"]))
'''
OUR_EXAMPLE = '''"""Prints the most probable classes of a video: python example.py VIDEO. It needs vivit-train."""

import sys
from pathlib import Path

import vivit_train

model = vivit_train.load(Path(__file__).parent)
for head, labels in model.predict(sys.argv[1]).heads.items():
    for label in labels:
        print(*filter(None, [head, label.name, f"{label.probability:.3f}"]))
'''
NORMALIZED = """
mean, std = (np.array(settings[name], np.float32).reshape(3, 1, 1) * 255 for name in ("mean", "std"))
video = torch.from_numpy((clips - mean) / std)
"""
# For each format: the packages, the imports, how to load the model, and how to compute the logits [K] of `clips`.
PARTS = {
    "onnx": (
        "onnxruntime, numpy and av",
        "from onnxruntime import InferenceSession\n",
        'session = InferenceSession(folder / "model.onnx")\n',
        'logits = session.run(None, {"clips": clips})[0][0]\n',
    ),
    "torch-export": (
        "torch, numpy and av",
        "import torch\n",
        'model = torch.export.load(folder / "model.pt2").module()\n',
        "logits = model(torch.from_numpy(clips))[0].detach().numpy()\n",
    ),
    "huggingface": (
        "transformers, torch, numpy and av",
        "import torch\nfrom transformers import VivitForVideoClassification\n",
        "model = VivitForVideoClassification.from_pretrained(folder).eval()\n",
        f"{NORMALIZED}logits = model(video).logits[0].detach().numpy()\n",
    ),
}


def write_example(folder: Path, format: str) -> None:
    """Writes example.py; the authors' code has its own."""
    if format == "scenic":
        return
    text = OUR_EXAMPLE
    if format in PARTS:
        packages, imports, load, run = PARTS[format]
        text = EXAMPLE.format(packages=packages, imports=imports, load=load, run=run)
    (folder / "example.py").write_text(text, encoding="utf-8")


def write_card(
    folder: Path, format: str, checkpoint: str, run: Path | None, parity: str, task: VideoClassifier
) -> None:
    """Writes README.md: what the model is, how it was trained, what it scores, and how to run it.

    Args:
        folder: The folder.
        format: The name of the format.
        checkpoint: The source as the user named it.
        run: The folder of the run that trained the model, if it is there.
        parity: The result of the comparison with the checkpoint.
        task: The model with its classes.
    """
    net = task.net
    _, frames, height, width = net.input_shape
    parameters = sum(p.numel() for p in net.parameters()) / 1e6
    classes = {head: len(names) for head, names in task.classes.items()}
    heads = ", ".join(f"{n} {head} classes".replace("  ", " ") for head, n in classes.items())
    lines = [
        f"# ViViT ({net.model}), {heads}",
        "",
        f"A Video Vision Transformer (arXiv 2103.15691) with {parameters:.2f} M parameters. It takes clips of "
        f"{plural(frames, 'frame')} of {width}x{height} pixels. vivit-train exported it from "
        f"`{printable(Path(checkpoint).name)}`.",
        "",
        f"- Format: {format}. {parity}",
        "- Preprocessing and class names: `preprocessing.json`.",
        *training_lines(run),
        "",
        *(["```", "python example.py VIDEO", "```"] if format != "scenic" else []),
    ]
    (folder / "README.md").write_text("\n".join(map(printable_lines, lines)) + "\n", encoding="utf-8")


def training_lines(run: Path | None) -> list[str]:
    """Returns the lines of the card that come from the files of a run: scores, license of the start, recipe."""
    if run is None:
        return ["- Training: not known from these weights alone."]
    lines = []
    metrics, receipt, recipe = (
        text_of(run, name) for name in ("metrics.json", "weight_report.txt", "recipe_differences.txt")
    )
    result: Any = parse_json(metrics, run / "metrics.json") if metrics else None
    if isinstance(result, dict):
        numbers = {name: value for name, value in result.items() if "@" in name and isinstance(value, float)}
        scores = ", ".join(f"{name} {value:.4f}" for name, value in numbers.items())
        of = f"{shown(result.get('n'))} videos of the {printable(result.get('split'))} split"
        lines += [f"- Accuracy: {scores}; {of}."] * bool(scores)
    if receipt:
        first, *rest = receipt.splitlines()
        licenses = [line.strip() for line in rest if line.strip().startswith("license: ")]
        lines += [f"- Start: {'; '.join([first, *licenses])}"]
    if recipe:
        lines += ["", "## Training", "", "```", recipe.replace("```", "...").strip(), "```"]
    return lines or ["- Training: the run folder holds no results."]


def text_of(run: Path, name: str) -> str:
    """Returns the text of a file of a run, or "" if there is none or it is a link out of the folder.

    Such a link, in the folder of a stranger, could lead to a secret, which the card would publish.
    """
    file = run / name
    is_inside = Path(os.path.realpath(file)).is_relative_to(os.path.realpath(run))
    return printable_lines(read_text(file, errors="replace")).strip() if is_inside and file.is_file() else ""
