"""Reads weight files and Hugging Face folders, recognized by their content. Nothing in them is executed."""

import logging
import os
import re
import zipfile
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vivit_train.models.weights.checks import check_content, check_statistics
from vivit_train.utils.arguments import conforms, limit_problems, shown
from vivit_train.utils.errors import UserError, reason
from vivit_train.utils.files import read_text
from vivit_train.utils.json_file import parse_json
from vivit_train.utils.text import plural, shorten_list

log = logging.getLogger(__name__)
WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
SHARD_INDEX = "model.safetensors.index.json"
SHARD = re.compile(r"\w[\w.-]*\.safetensors", re.ASCII)  # A name in the same folder, never a path.
MAX_SHARDS = 1024
CHECKPOINT_JSON = "vivit_train.json"  # It makes a folder a checkpoint of vivit-train; see training/checkpoint.py.
# What a status of the Hub's answer means, and the errors of a network that does not reach it.
HUB_ANSWERS = {
    401: "there is no such model, or it is private: run `hf auth login`",
    403: "its owner restricts the access",
    404: "there is no such model",
}
UNREACHABLE = ("ConnectError", "ConnectTimeout", "ReadTimeout", "ConnectionError", "gaierror")
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
EXPORT_JSON = "preprocessing.json"  # `vivit export` writes it beside a model.
# What `vivit export` writes for other programs, and the programs. Their graphs cannot become a model again.
GRAPHS = {"model.onnx": "onnxruntime", "model.pt2": "torch.export.load"}
PREPROCESSORS = ("preprocessor_config.json", "video_preprocessor_config.json")
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


def refuse_graph(path: Path) -> None:
    """Checks that a file or folder is no model that only other programs run.

    Raises:
        UserError: It is an ONNX or torch.export file, or a folder of `vivit export` with one. The message says
            what runs it, and what to name instead.
    """
    name = next((name for name in GRAPHS if path.suffix == Path(name).suffix and path.is_file()), None)
    if name is None and (path / EXPORT_JSON).is_file() and not (path / "config.json").is_file():
        name = next((name for name in GRAPHS if (path / name).is_file()), None)
    if name is None:
        return
    example = (path if path.is_dir() else path.parent) / "example.py"
    shows = f"; python {example} VIDEO predicts with it" if example.is_file() else ""
    raise UserError(
        f"{path} is an export for other programs, which {GRAPHS[name]} runs{shows}. Name the checkpoint that it "
        "was exported from instead, or export that with --format safetensors"
    )


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
            # Given a path, torch would rely on the file extension. Many training scripts save their arguments too,
            # as a Namespace, which only holds attributes.
            with open(path, "rb") as file, torch.serialization.safe_globals([Namespace]):
                content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path} cannot be read as weights: {reason(error)}") from error
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{path} cannot be read as weights: it is damaged or of another kind") from error
    except Exception as error:  # weights_only rejects everything but tensors.
        raise UserError(f"{path} is refused: it holds more than tensors ({type(error).__name__})") from error
    check_content(content, path)
    return content


def unwrapped(content: Any) -> Any:
    """Returns the state dict in the content of a file, which may be inside of a dict with other items."""
    for wrapper in ("state_dict", "model", "module", "model_state"):
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
        UserError: The file is not a JSON object or is too large.
    """
    content = parse_json(read_text(path), path)
    if not isinstance(content, dict):
        raise UserError(f"{path} cannot be read: expected a JSON object, found a {type(content).__name__}")
    return content


def is_hub_name(name: str) -> bool:
    """Returns whether a name that is no file is one on the Hugging Face Hub: "user/name", in no folder here."""
    path = Path(name)
    is_free = not path.exists() and not path.parent.is_dir() and path.suffix not in WEIGHT_FILES
    return is_free and HUB_NAME.fullmatch(name) is not None


def hub_reason(error: Exception) -> str:
    """Returns why the Hugging Face Hub did not answer as expected."""
    if os.environ.get("HF_HUB_OFFLINE"):
        return "HF_HUB_OFFLINE is set"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in HUB_ANSWERS:
        return HUB_ANSWERS[status]
    found: list[BaseException] = [error]
    while (cause := found[-1].__cause__ or found[-1].__context__) is not None and len(found) < 9:
        found.append(cause)
    if any(type(cause).__name__ in UNREACHABLE or isinstance(cause, ConnectionError) for cause in found):
        return "it cannot be reached"
    return f"{type(error).__name__}: {reason(error)}"


def hub_folder(source: str | Path) -> Path:
    """Returns a local model folder, or downloads the model of that name from the Hugging Face Hub.

    Only data is downloaded, no code.

    Raises:
        UserError: Neither exists.
    """
    folder = Path(source)
    files = ["*config.json", "model.safetensors", SHARD_INDEX, "model-*.safetensors", "pytorch_model.bin"]
    files += [CHECKPOINT_JSON, EXPORT_JSON]
    if not folder.is_dir():
        if not HUB_NAME.fullmatch(str(source)):
            raise UserError(f"no weights at {source}")
        import huggingface_hub

        try:
            folder = Path(huggingface_hub.snapshot_download(str(source), allow_patterns=files))
        except Exception as error:  # Downloads fail in many ways that this package cannot control.
            raise UserError(
                f"no weights at {source}, and the Hugging Face Hub did not provide a model of that name "
                f"({hub_reason(error)}): check the name and the network, or download the model elsewhere and pass "
                "its folder"
            ) from error
    if not any((folder / name).is_file() for name in ("config.json", CHECKPOINT_JSON)):
        raise UserError(f"{source} is not a Hugging Face model folder: it has no config.json")
    return folder


def folder_weights(folder: Path) -> dict[str, Tensor]:
    """Returns the state dict in a Hugging Face model folder, which may be split into shards."""
    for name in ("model.safetensors", SHARD_INDEX, "pytorch_model.bin"):
        if os.path.isfile(folder / name):
            return (
                shards(folder / name)
                if name == SHARD_INDEX
                else tensors_of(read_file(folder / name), folder / name)
            )
    raise UserError(f"{folder} is not a Hugging Face model folder: it has no model.safetensors")


def shards(index: Path) -> dict[str, Tensor]:
    """Returns the state dict in the safetensors files that an index lists.

    Raises:
        UserError: The index names anything but files beside it, or a file or a weight is missing or left over.
    """
    places = read_json_object(index).get("weight_map")
    if not places or not conforms(places, dict[str, str]):
        raise UserError(f"{index}: weight_map must name the file of each weight")
    files = sorted(set(places.values()))
    if odd := [name for name in files if not SHARD.fullmatch(name)]:
        raise UserError(f"{index} is refused: {shown(odd[0])} is not the name of a safetensors file beside it")
    if len(files) > MAX_SHARDS:
        raise UserError(f"{index} is refused: it lists {len(files):,} files, more than {MAX_SHARDS:,}")
    if missing := [name for name in files if not os.path.isfile(index.parent / name)]:
        raise UserError(
            f"{index} lists {plural(len(files), 'file')}, of which {shorten_list(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not there: is the download complete?"
        )
    weights: dict[str, Tensor] = {}
    for file in (index.parent / name for name in files):
        shard = tensors_of(read_file(file), file)
        if odd := [key for key in shard if places.get(key) != file.name]:
            raise UserError(f"{file} holds {shown(odd[0])}, but {index.name} does not list it there")
        weights |= shard
    if odd := [key for key in places if key not in weights]:
        raise UserError(
            f"{index.parent / places[odd[0]]} does not hold {shown(odd[0])}, which {index.name} lists there"
        )
    return weights


def preprocessor(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Returns the preprocessing of a Hugging Face folder and the path of its file; {} if there is none."""
    for file in (folder / name for name in PREPROCESSORS):
        if file.is_file():
            return file, read_json_object(file)
    return folder / PREPROCESSORS[0], {}


def resizing(folder: Path) -> dict[str, Any]:
    """Returns what the preprocessing of a Hugging Face folder states: short_side, resize_mode and crop in pixels.

    Raises:
        UserError: A size is malformed, or frames are stretched to a rectangle that is not a square.
    """
    file, config = preprocessor(folder)
    found: dict[str, Any] = {}
    size, crop = (config.get(key) for key in ("size", "crop_size"))
    if config.get("do_resize", True) and size is not None:
        sides = size if isinstance(size, dict) else {"shortest_edge": size}
        if list(sides) == ["shortest_edge"]:
            found = {"short_side": sides["shortest_edge"], "resize_mode": "keep_ratio"}
        elif set(sides) == {"height", "width"} and sides["height"] == sides["width"]:
            found = {"short_side": sides["height"], "resize_mode": "stretch"}
        else:
            raise UserError(f"{file}: size must be a shortest_edge, or a height and an equal width")
    if config.get("do_center_crop", True) and crop is not None:
        found["crop"] = crop.get("height") if isinstance(crop, dict) else crop
    for key in ("short_side", "crop"):
        if key in found and not conforms(found[key], int):
            raise UserError(f"{file}: the size for {key} is {shown(found[key])}, but must be a whole number")
        if key in found and (problems := limit_problems(f"{file}: {key}", key, found[key])):
            raise UserError(problems[0])
    return found


def exported_sampling(folder: Path) -> dict[str, Any]:
    """Returns how frames make a clip, as `vivit export` states it beside a model: the settings of `data`.

    Raises:
        UserError: A setting is malformed.
    """
    file = folder / EXPORT_JSON
    content = read_json_object(file) if file.is_file() else {}
    hints: dict[str, Any] = {
        "stride": int,
        "fps": float | None,
        "sampling": Literal["window", "segments"],
        "padding": Literal["wrap", "repeat_last", "black"],
    }
    found = {key: content[key] for key in hints if key in content}
    for key, value in found.items():
        if not conforms(value, hints[key]):
            raise UserError(f"{file}: {key} is {shown(value)}, which is no {key} of a clip")
        if problems := limit_problems(f"{file}: {key}", key, value):
            raise UserError(problems[0])
    return found


def normalizes_twice(config: Mapping[str, Any]) -> bool:
    """Returns whether a preprocessing has Hugging Face's default, which normalizes pixels twice, to [-3, 1].

    The released weights and those of its guide were trained in [-1, 1], so the file does not describe training.
    """
    factor = config.get("rescale_factor", 1 / 127.5)
    stated = [config.get(f"image_{key}", [0.5] * 3) for key in ("mean", "std")]
    switches = ("do_rescale", "offset", "do_normalize")
    is_default = all(config.get(key, True) for key in switches) and stated == [[0.5] * 3] * 2
    return is_default and conforms(factor, float) and round(255 * factor, 6) == 2


def video_statistics(folder: Path) -> Statistics:
    """Returns the normalization of the ViViT in a Hugging Face folder; without a file, that of the authors."""
    file, config = preprocessor(folder)
    if not file.is_file():
        return (0.5,) * 3, (0.5,) * 3
    rescale, normalize = config.get("do_rescale", True), config.get("do_normalize", True)
    factor, offset = config.get("rescale_factor", 1 / 127.5), float(bool(rescale and config.get("offset", True)))
    if not conforms(factor, float) or not 1e-9 < factor < 1e3:
        raise UserError(f"{file}: rescale_factor is {shown(factor)}, but must be a small positive number")
    scale = 255 * factor if rescale else 255.0
    mean = config.get("image_mean", [0.5] * 3) if normalize else [0.0] * 3
    std = config.get("image_std", [0.5] * 3) if normalize else [1.0] * 3
    check_statistics(mean, std, file)
    if normalizes_twice(config):
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
