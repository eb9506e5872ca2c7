"""Weight files and Hugging Face folders, recognised by what is in them. Nothing in them is executed."""

import json
import os
import re
import zipfile
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vivit_train.models.weights.checks import check_content, check_statistics
from vivit_train.utils.arguments import conforms, shown
from vivit_train.utils.errors import UserError, reason

WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
MAX_JSON_BYTES = 64 << 20
Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and std of the normalisation, pixels in 0 .. 1


def kind_of(path: str | Path) -> Literal["safetensors", "torch", "flax", "unknown"]:
    """What a weight file is, by its first bytes."""
    with open(path, "rb") as file:
        head = file.read(9)
    if head[5:] == b"\0\0\0{":  # eight bytes for the length of a JSON header
        return "safetensors"
    if head.startswith((b"PK\x03\x04", b"\x80")):  # a zip, or the bare pickle of old
        return "torch"
    return "flax" if head and head[0] in (*range(0x81, 0x90), 0xDE, 0xDF) else "unknown"  # a map of msgpack


def refuse_bomb(path: str | Path) -> None:
    """torch stores what it saves as it is: a file of its own unpacks to no more than the file.

    Raises:
        UserError: a zip that claims more, and could fill the memory; or one that is damaged.
    """
    with open(path, "rb") as file:
        if file.read(2) != b"PK":
            return
        try:
            claimed = sum(part.file_size for part in zipfile.ZipFile(file).infolist())
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:  # a later zip; names of no encoding
            raise UserError(f"{path} cannot be read, it is damaged or cut off: {error}") from error
    if claimed > os.path.getsize(path):
        raise UserError(f"{path} is refused: it would unpack to {claimed:,} bytes, more than torch had saved")


def read_file(path: str | Path) -> Any:
    """What a safetensors or PyTorch file holds, whatever it is called.

    Raises:
        UserError: neither of them, damaged, or more than tensors and plain data.
    """
    kind = kind_of(path)
    if kind not in ("safetensors", "torch"):
        raise UserError(f"{path} cannot be read as weights: it is neither a safetensors nor a PyTorch file")
    refuse_bomb(path)
    try:
        if kind == "safetensors":
            content = load_file(path)
        else:
            with open(path, "rb") as file:  # from a path, torch goes by its ending
                content = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{path} cannot be read as weights: {reason(error)}") from error
    except Exception as error:  # pickle.UnpicklingError and friends: weights_only refuses everything but tensors
        raise UserError(f"{path} is refused: it holds more than tensors ({type(error).__name__})") from error
    check_content(content, path)
    return content


def tensors_of(content: Any, path: Path) -> dict[str, Tensor]:
    """The content of a file as a state dict, or the error that it is none."""
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        keys = f" (it has {', '.join(map(str, list(content)[:5]))}, ...)" if isinstance(content, dict) else ""
        raise UserError(f"{path} holds no state dict of tensors{keys}")
    return content


def read_json(path: Path) -> dict[str, Any]:
    """A configuration, or the index of a sharded model.

    Raises:
        UserError: it is not a JSON object, or larger than `MAX_JSON_BYTES`.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise UserError(
                f"{path} cannot be read: {path.stat().st_size:,} bytes are too many for a configuration"
            )
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except RecursionError as error:
        raise UserError(f"{path} cannot be read: it is nested too deeply") from error
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read: {reason(error)}") from error


def hub_folder(source: str | Path) -> Path:
    """A local model folder as it is; else the hub's model of that name, downloaded: data alone, no code.

    Raises:
        UserError: neither.
    """
    folder, files = Path(source), ["*config.json", "model.safetensors", "pytorch_model.bin"]
    if not folder.is_dir():
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
            raise UserError(f"no weights at {source}")
        import huggingface_hub

        try:
            folder = Path(huggingface_hub.snapshot_download(str(source), allow_patterns=files))
        except Exception as error:  # hubs fail in many ways, all of them outside this program
            offline = ", HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE") else ""
            raise UserError(
                f"no weights at {source}, and by that name the Hugging Face hub gives none "
                f"({type(error).__name__}: {reason(error)}{offline}): check the name and the network, or download "
                "the model elsewhere and give its folder"
            ) from error
    if not (folder / "config.json").is_file():
        raise UserError(f"{source} is no Hugging Face model folder: it has no config.json")
    return folder


def folder_weights(folder: Path) -> dict[str, Tensor]:
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return tensors_of(read_file(folder / name), folder / name)
    raise UserError(f"{folder} is no Hugging Face model folder: it has no model.safetensors")


def video_statistics(folder: Path) -> Statistics:
    """What the ViViT in a Hugging Face folder was trained with, by its preprocessor_config.json."""
    file = folder / "preprocessor_config.json"
    config = read_json(file) if file.is_file() else {}
    rescale, normalise = config.get("do_rescale", True), config.get("do_normalize", True)
    factor, offset = config.get("rescale_factor", 1 / 127.5), float(bool(rescale and config.get("offset", True)))
    if not conforms(factor, float) or not 1e-9 < factor < 1e3:
        raise UserError(f"{file}: rescale_factor is {shown(factor)}: it must be a small positive number")
    scale = 255 * factor if rescale else 255.0
    mean = config.get("image_mean", [0.5] * 3) if normalise else [0.0] * 3
    std = config.get("image_std", [0.5] * 3) if normalise else [1.0] * 3
    check_statistics(mean, std, file)
    if offset and round(scale, 6) == 2 and mean == std == [0.5] * 3:
        # Their default normalises twice, to [-3, 1]. The released weights, and those of their guide, were trained
        # in [-1, 1]: that file says nothing of the training.
        return (0.5,) * 3, (0.5,) * 3
    return (
        tuple(round((offset + value) / scale, 9) for value in mean),
        tuple(round(value / scale, 9) for value in std),
    )
