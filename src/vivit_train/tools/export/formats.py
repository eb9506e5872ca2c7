"""Writes a model in a format, and reads it back as the format's own programs do, for the check of its logits.

The models of the formats onnx and torch-export take uint8 clips [B, T, C, H, W] of any number B and normalize them
themselves.
"""

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vivit_train.models.vivit import ViViT
from vivit_train.models.weights.files import CHECKPOINT_JSON
from vivit_train.models.weights.huggingface import load_huggingface, save_huggingface
from vivit_train.models.weights.scenic import save_scenic
from vivit_train.models.weights.whole import arguments_of
from vivit_train.tools.export.card import Preprocessing
from vivit_train.training.checkpoint import (
    Metadata,
    load_checkpoint,
    restore_net,
    write_checkpoint_folder,
    write_metadata,
)
from vivit_train.training.module import VideoClassifier
from vivit_train.utils.errors import UserError

Logits = Callable[[Tensor], Tensor]  # uint8 clips [B, T, C, H, W] to logits [B, K]


@dataclass(frozen=True)
class Format:
    """A format of a model.

    Attributes:
        write: Writes the files of a model to a folder, and returns the function that they compute.
        can_be_half: Whether it can hold float16.
        can_be_int8: Whether it can hold int8.
        packages: The packages that it needs beyond those of this package.
        holds_all: Whether it holds every model.
    """

    write: Callable[["Model", Path], Logits]
    can_be_half: bool = False
    can_be_int8: bool = False
    packages: tuple[str, ...] = ()
    holds_all: bool = True


@dataclass(frozen=True)
class Model:
    """What is exported.

    Attributes:
        task: The model with its classes and its normalization, on the CPU.
        preprocessing: How its clips are made.
        metadata: What `load` needs beside the weights.
        half: Whether to store and compute in float16.
        int8: Whether to store the weights of matrix products in int8.
    """

    task: VideoClassifier
    preprocessing: Preprocessing
    metadata: Metadata
    half: bool = False
    int8: bool = False


class FromPixels(nn.Module):
    """A net with its normalization: from uint8 clips [B, T, C, H, W] to logits [B, K], float32."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.dtype = torch.float16 if model.half else torch.float32
        self.net = model.task.net.to(self.dtype).eval()
        self.register_buffer("mean", model.task.mean.float())
        self.register_buffer("std", model.task.std.float())

    def forward(self, clips: Tensor) -> Tensor:
        video_BTCHW = (clips.float() - self.mean) / self.std
        logits = self.net(video_BTCHW.transpose(1, 2).to(self.dtype))
        return (logits if isinstance(logits, Tensor) else torch.cat(list(logits.values()), 1)).float()


def write_torch_export(model: Model, folder: Path) -> Logits:
    file = folder / "model.pt2"
    torch.export.save(captured(model), file)
    loaded: Logits = torch.export.load(file).module()
    return loaded


def write_onnx(model: Model, folder: Path) -> Logits:
    from onnxruntime import InferenceSession

    file = folder / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            captured(model), (), dynamo=True, input_names=["clips"], output_names=["logits"], verbose=False
        )
    assert program is not None
    program.save(file)
    if model.int8:
        quantize(file)
    session = InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda clips: torch.from_numpy(session.run(None, {"clips": clips.numpy()})[0])


def quantize(file: Path) -> None:
    """Replaces the float32 weights of the matrix products in an ONNX file with int8."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    part = file.with_name("float.onnx")
    file.rename(part)
    # The patch embedding, a convolution, has few weights, and onnxruntime has no fast kernel for it in int8.
    # onnxruntime warns by the root logger, which would then get a handler and print our messages a second time.
    root, silent = logging.getLogger(), logging.NullHandler()
    root.addHandler(silent)
    try:
        quantize_dynamic(part, file, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"])
    finally:
        root.removeHandler(silent)
    for rest in file.parent.glob("float.onnx*"):
        rest.unlink()


def captured(model: Model) -> Any:
    """Returns the graph of a model, for any number of clips."""
    frames, height, width = model.task.net.input_shape[1:]
    clips = torch.zeros(2, frames, 3, height, width, dtype=torch.uint8)
    sizes = {"clips": {0: torch.export.Dim.DYNAMIC}}
    with torch.no_grad():
        return torch.export.export(FromPixels(model), (clips,), dynamic_shapes=sizes)


def write_safetensors(model: Model, folder: Path) -> Logits:
    net, dtype = model.task.net, torch.float16 if model.half else torch.float32
    write_checkpoint_folder(folder, model.metadata, {k: v.to(dtype) for k, v in net.state_dict().items()})
    file = folder / CHECKPOINT_JSON
    metadata, weights = load_checkpoint(file)
    package = type(net).__module__.partition(".")[0]  # Loading the checkpoint has run its code.
    return with_pixels(model, restore_net(metadata, weights, file, [package]))


def write_huggingface(model: Model, folder: Path) -> Logits:
    task, (mean, std) = model.task, model.preprocessing.statistics
    classes = [name for names in task.classes.values() for name in names]
    short_side, how = model.preprocessing.short_side, model.preprocessing.resize_mode
    save_huggingface(task.net, folder, classes=classes, mean=mean, std=std, short_side=short_side, resize_mode=how)
    try:
        from transformers import VivitForVideoClassification
    except ImportError:
        return with_pixels(model, load_huggingface(folder))
    theirs = VivitForVideoClassification.from_pretrained(folder).eval()
    return lambda clips: theirs(task.normalise(clips)).logits


def write_scenic(model: Model, folder: Path) -> Logits:
    net, file = model.task.net, folder / CHECKPOINT_JSON
    save_scenic(net, folder / "checkpoint_0")
    write_metadata(file, replace(model.metadata, config=model.metadata.config | {"model": node_of(net)}))
    metadata, weights = load_checkpoint(file)
    return with_pixels(model, restore_net(metadata, weights, file))


def node_of(net: ViViT) -> dict[str, Any]:
    """Returns the `model` node of a net that the authors' code has too, whatever class it is of."""
    return {"_target_": "vivit", **arguments_of(net)}


def with_pixels(model: Model, net: ViViT) -> Logits:
    """Returns the logits of a net with the normalization of the model."""
    task = model.task
    return VideoClassifier(net, task.classes, *model.preprocessing.statistics).eval()


FORMATS = {
    "onnx": Format(write_onnx, True, True, ("onnx", "onnxscript", "onnxruntime")),
    "torch-export": Format(write_torch_export, can_be_half=True),
    "safetensors": Format(write_safetensors, can_be_half=True),
    "huggingface": Format(write_huggingface, holds_all=False),
    "scenic": Format(write_scenic, holds_all=False),
}


def check_format(name: str, half: bool, int8: bool) -> Format:
    """Returns a format that can hold what is asked for.

    Raises:
        UserError: It cannot, or a package is missing.
    """
    from importlib.util import find_spec

    format = FORMATS[name]
    if half and int8:
        raise UserError("--half and --int8 exclude each other")
    for option, wanted, can in (("half", half, format.can_be_half), ("int8", int8, format.can_be_int8)):
        if wanted and not can:
            able = [other for other, known in FORMATS.items() if getattr(known, f"can_be_{option}")]
            raise UserError(f"--format {name} has no --{option}, unlike {', '.join(able)}")
    if missing := [package for package in format.packages if find_spec(package) is None]:
        raise UserError(f"--format {name} needs {', '.join(missing)}: pip install 'vivit-train[onnx]'")
    return format
