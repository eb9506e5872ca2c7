"""Exports a model to a new folder, after comparing the logits of its files with those of the model."""

import copy
import logging
import os
import shutil
from pathlib import Path

import torch

from vivit_train.data.annotations.table import Splits
from vivit_train.loading import checkpoint_at
from vivit_train.tools.export.card import Preprocessing, write_card, write_example
from vivit_train.tools.export.formats import FORMATS, Format, Model, check_format
from vivit_train.utils.errors import UserError
from vivit_train.utils.text import printable
from vivit_train.video_model import VideoModel, clip_table, no_annotations

log = logging.getLogger(__name__)

CLIPS = 3  # The comparison uses this many random clips, another number than the graph was captured with.
# The largest difference of a logit, as a share of the largest logit.
TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "int8": 0.5}


def export(
    model: VideoModel, checkpoint: str, out: Path, format: str, *, half: bool = False, int8: bool = False
) -> None:
    """Writes the folder and says so; see `write_folder`."""
    number, parity = write_folder(model, checkpoint, out, format, half=half, int8=int8)
    size_mb = sum(file.stat().st_size for file in out.iterdir()) / 1e6
    log.info(f"written: {printable(str(out))} ({size_mb:.1f} MB, {number}). {parity}")


def write_folder(
    model: VideoModel, checkpoint: str, out: Path, format: str, *, half: bool = False, int8: bool = False
) -> tuple[str, str]:
    """Writes the folder, and returns the type of its numbers and the result of the comparison in words.

    Args:
        model: The model, on the CPU.
        checkpoint: The source of the model, as the user named it.
        out: The folder, which must not exist, or be empty.
        format: A name in `FORMATS`.
        half: Whether to store and compute in float16.
        int8: Whether to store the weights of matrix products in int8.

    Raises:
        UserError: The folder is not empty, the format cannot hold the model, or the logits differ.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists: choose another folder for --out")
    writer = check_format(format, half, int8)
    assert model.metadata is not None  # `load` gives it to each model with classes
    nothing = clip_table([])
    splits = Splits({}, nothing, nothing, None, "videos")
    data = model.build_data(name="videos", root=".", reader=no_annotations, splits=splits)
    preprocessing = Preprocessing.of(model.task, data)
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    part.mkdir(parents=True)
    try:
        clips = torch.randint(256, (CLIPS, *swapped(model.task.net.input_shape)), dtype=torch.uint8)
        number = "int8" if int8 else "float16" if half else "float32"
        with torch.no_grad():
            expected = model.task(clips)
            of_copy = Model(copy.deepcopy(model.task), preprocessing, model.metadata, half, int8)
            difference = write_and_compare(writer, of_copy, part, clips, expected, number)
        parity = f"On {CLIPS} random clips, its logits differ from the checkpoint's by at most {difference:.2g}."
        preprocessing.write(part)
        write_example(part, format)
        write_card(part, format, checkpoint, run_of(checkpoint), parity, model.task)
        if out.exists():
            out.rmdir()
        part.rename(out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return number, parity


def write_and_compare(
    writer: Format, model: Model, folder: Path, clips: torch.Tensor, expected: torch.Tensor, number: str
) -> float:
    """Writes the files of a model, and returns the largest difference of their logits from the expected ones.

    Raises:
        UserError: The format cannot hold the model, or the logits differ. The message names formats that can.
    """
    try:
        return compare(writer.write(model, folder)(clips).float(), expected, number)
    except UserError as error:
        if writer.holds_all:
            raise
        able = ", ".join(name for name, known in FORMATS.items() if known.holds_all)
        raise UserError(f"{error}: choose another --format; every model can be {able}") from error


def compare(written: torch.Tensor, expected: torch.Tensor, number: str) -> float:
    """Returns the largest difference of a logit.

    Raises:
        UserError: It is too large for the type of number.
    """
    difference = float((written - expected).abs().max())
    limit = TOLERANCE[number] * max(1.0, float(expected.abs().max()))
    if not difference <= limit:
        raise UserError(
            f"the exported logits differ by {difference:.3g} from the checkpoint's, more than {limit:.3g}, "
            "so nothing is written"
        )
    return difference


def swapped(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of a uint8 clip [T, C, H, W] from that of the net's input [C, T, H, W]."""
    channels, frames, height, width = shape
    return frames, channels, height, width


def run_of(checkpoint: str) -> Path | None:
    """Returns the folder of the run that wrote a checkpoint, or None for other weights."""
    if not Path(checkpoint).exists() or (Path(checkpoint) / "config.json").is_file():
        return None
    file = checkpoint_at(Path(checkpoint))
    return file.parent.parent if file.parent.name == "checkpoints" else file.parent
