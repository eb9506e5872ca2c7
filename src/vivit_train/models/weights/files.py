"""Reads weight files and Hugging Face folders, recognized by their content. Nothing in them is executed."""

import logging
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
from vivit_train.utils.json_file import parse_json
from vivit_train.utils.text import shorten_list

log = logging.getLogger(__name__)
WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
MAX_JSON_BYTES = 64 << 20
# The mean and std of a normalization, for pixels in [0, 1].
Statistics = tuple[tuple[float, ...], tuple[float, ...]]


def kind_of(path: str | Path) -> Literal["safetensors", "torch", "flax", "unknown"]:
    """Returns the kind of a weight file, which its first bytes show."""
    with open(path, "rb") as file:
        head = file.read(9)
    if head[5:] == b"\0\0\0{":  # The first eight bytes are the length of a JSON header.
        return "safetensors"
    if head.startswith((b"PK\x03\x04", b"\x80")):  # This is a zip file, or a bare pickle from old versions.
        return "torch"
    # These bytes start a msgpack map.
    return "flax" if head and head[0] in (*range(0x81, 0x90), 0xDE, 0xDF) else "unknown"


def refuse_bomb(path: str | Path) -> None:
    """Checks that a file does not unpack to more bytes than it has; torch saves zip files without compression.

    Raises:
        UserError: The zip file claims more bytes, which could exhaust memory, or it is damaged.
    """
    with open(path, "rb") as file:
        if file.read(2) != b"PK":
            return
        try:
            claimed = sum(part.file_size for part in zipfile.ZipFile(file).infolist())
        # The last two mean an unsupported zip version and an unsupported encoding of names.
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise UserError(f"{path} cannot be read because it is damaged or cut off: {error}") from error
    if claimed > os.path.getsize(path):
        raise UserError(f"{path} is refused: it would unpack to {claimed:,} bytes, more than torch saved")


def read_file(path: str | Path) -> Any:
    """Returns the content of a safetensors or PyTorch file, whatever its name.

    Raises:
        UserError: The file has another format, is damaged, or holds more than tensors and plain data.
    """
    kind = kind_of(path)
    if kind not in ("safetensors", "torch"):
        raise UserError(f"{path} cannot be read as weights: it is neither a safetensors nor a PyTorch file")
    refuse_bomb(path)
    try:
        if kind == "safetensors":
            content = load_file(path)
        else:
            with open(path, "rb") as file:  # Given a path, torch would rely on the file extension.
                content = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{path} cannot be read as weights: {reason(error)}") from error
    except Exception as error:  # weights_only rejects everything but tensors.
        raise UserError(f"{path} is refused: it holds more than tensors ({type(error).__name__})") from error
    check_content(content, path)
    return content


def unwrapped(content: Any) -> Any:
    """Returns the state dict in the content of a file, which may be inside of a dict with other items."""
    for wrapper in ("state_dict", "model"):
        content = content.get(wrapper, content) if isinstance(content, dict) else content
    return content


def tensors_of(content: Any, path: Path) -> dict[str, Tensor]:
    """Returns the content of a file if it is a state dict.

    Raises:
        UserError: It is not a dict of tensors.
    """
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        keys = f" (it has {shorten_list(content)})" if isinstance(content, dict) else ""
        raise UserError(f"{path} holds no state dict of tensors{keys}")
    return content


def read_json_object(path: Path) -> dict[str, Any]:
    """Reads the JSON object in a file, such as a configuration or the index of a sharded model.

    Raises:
        UserError: The file is not a JSON object or is larger than `MAX_JSON_BYTES`.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise UserError(
                f"{path} cannot be read: {path.stat().st_size:,} bytes is too large for a configuration"
            )
        content = parse_json(path.read_text(encoding="utf-8"), path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {reason(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} cannot be read: expected a JSON object, found a {type(content).__name__}")
    return content


def hub_folder(source: str | Path) -> Path:
    """Returns a local model folder, or downloads the model of that name from the Hugging Face Hub.

    Only data is downloaded, no code.

    Raises:
        UserError: Neither exists.
    """
    folder, files = Path(source), ["*config.json", "model.safetensors", "pytorch_model.bin"]
    if not folder.is_dir():
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
            raise UserError(f"no weights at {source}")
        import huggingface_hub

        try:
            folder = Path(huggingface_hub.snapshot_download(str(source), allow_patterns=files))
        except Exception as error:  # Downloads fail in many ways that this package cannot control.
            offline = "; HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE") else ""
            raise UserError(
                f"no weights at {source}, and the Hugging Face Hub did not provide a model of that name "
                f"({type(error).__name__}: {reason(error)}{offline}): check the name and the network, or download "
                "the model elsewhere and pass its folder"
            ) from error
    if not (folder / "config.json").is_file():
        raise UserError(f"{source} is not a Hugging Face model folder: it has no config.json")
    return folder


def folder_weights(folder: Path) -> dict[str, Tensor]:
    """Returns the state dict in a Hugging Face model folder."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return tensors_of(read_file(folder / name), folder / name)
    raise UserError(f"{folder} is not a Hugging Face model folder: it has no model.safetensors")


def video_statistics(folder: Path) -> Statistics:
    """Returns the normalization of the ViViT in a Hugging Face folder, from preprocessor_config.json."""
    file = folder / "preprocessor_config.json"
    config = read_json_object(file) if file.is_file() else {}
    rescale, normalize = config.get("do_rescale", True), config.get("do_normalize", True)
    factor, offset = config.get("rescale_factor", 1 / 127.5), float(bool(rescale and config.get("offset", True)))
    if not conforms(factor, float) or not 1e-9 < factor < 1e3:
        raise UserError(f"{file}: rescale_factor is {shown(factor)}, but must be a small positive number")
    scale = 255 * factor if rescale else 255.0
    mean = config.get("image_mean", [0.5] * 3) if normalize else [0.0] * 3
    std = config.get("image_std", [0.5] * 3) if normalize else [1.0] * 3
    check_statistics(mean, std, file)
    if offset and round(scale, 6) == 2 and mean == std == [0.5] * 3:
        # Hugging Face's default normalizes twice, to [-3, 1]. The released weights and those of its guide were
        # trained in [-1, 1], so this file does not describe the training.
        log.info(
            f"note     {file} normalizes pixels to [-3, 1], as Hugging Face's default does, but the released "
            "weights were trained in [-1, 1], which is used here; if these were fine-tuned in [-3, 1], set "
            "init.mean=[0.75,0.75,0.75] init.std=[0.25,0.25,0.25]"
        )
        return (0.5,) * 3, (0.5,) * 3
    return (
        tuple(round((offset + value) / scale, 9) for value in mean),
        tuple(round(value / scale, 9) for value in std),
    )
