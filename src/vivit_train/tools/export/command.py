"""The command `vivit export`. Like cli.py, it imports its tools only when it is called."""

import logging
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from vivit_train.tools.predict.command import Checkpoint, Frames, Labels, ModelOption, Trusted, wrong_words

log = logging.getLogger(__name__)

EXAMPLES = (
    "vivit export runs/mine --format onnx --out exported",
    "vivit export runs/mine --format onnx --int8 --out small",
    "vivit export runs/mine --format torch-export --half --out exported",
    "vivit export runs/mine --format huggingface --out vivit-mine",
)
PUSH_EXAMPLES = (
    "vivit push runs/mine user/vivit-mine",
    "vivit push runs/mine/checkpoints/last.ckpt organization/name --private",
)
FormatName = Literal["onnx", "torch-export", "safetensors", "huggingface", "scenic"]
FormatOption = Annotated[
    FormatName,
    typer.Option(
        "--format",
        help="onnx and torch-export run without this package; huggingface (vivit_st) is for transformers; scenic "
        "is the checkpoint of the authors' JAX code; safetensors holds the tensors and their settings.",
    ),
]
Out = Annotated[Path, typer.Option(metavar="FOLDER", help="New folder for the model, its labels and its card.")]
Half = Annotated[
    bool, typer.Option("--half", help="Store and compute in float16 (onnx, torch-export, safetensors).")
]
Int8 = Annotated[bool, typer.Option("--int8", help="Store the weights of matrix products in int8 (onnx).")]


Repository = Annotated[str, typer.Argument(metavar="USER/NAME", help="Name of the model on the Hugging Face Hub.")]
Private = Annotated[
    bool, typer.Option("--private", help="Create a private repository; one that exists stays as it is.")
]


def export(
    checkpoint: Checkpoint,
    format: FormatOption,
    out: Out,
    half: Half = False,
    int8: Int8 = False,
    labels: Labels = None,
    model: ModelOption = None,
    frames: Frames = None,
    trusted: Trusted = None,
) -> None:
    """Write a model for other programs, and compare its logits with those of the checkpoint.

    The folder holds the model, its labels and preprocessing (preprocessing.json), a model card (README.md), and an
    example that runs (example.py).
    """
    with wrong_words():
        from vivit_train.loading import load
        from vivit_train.tools.export.run import export as run

        stated: dict[str, Any] = {"labels": labels, "model": model, "frames": frames}
        loaded = load(checkpoint, **stated, device="cpu", trusted=trusted or ())
        run(loaded, checkpoint, out, format, half=half, int8=int8)


def push(checkpoint: Checkpoint, repository: Repository, private: Private = False) -> None:
    """Upload a model to the Hugging Face Hub, where vivit_train.load("user/name") finds it.

    The repository gets the weights, the class names and the preprocessing as plain data, a card and an example.

    It is created if it does not exist; otherwise, this is a new commit.

    The token is that of `hf auth login`, or HF_TOKEN.
    """
    with wrong_words():
        from vivit_train.tools.export.push import push as run

        run(checkpoint, repository, private=private)
