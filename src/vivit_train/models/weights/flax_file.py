"""Reads and writes flax checkpoint files (msgpack trees of arrays) without JAX. Nothing in them is executed."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgpack  # type: ignore[import-untyped]
import numpy as np

from vivit_train.utils.errors import UserError
from vivit_train.utils.files import check_is_file

MAX_BYTES = 1 << 35  # The authors' largest checkpoint, with the state of its optimizer, has a quarter of that.

ARRAY, COMPLEX, SCALAR = 1, 2, 3  # These are flax's msgpack extension types.
CHUNKED = "__msgpack_chunked_array__"  # flax splits arrays of more than 1 GiB.
Tree = dict[str, np.ndarray[Any, Any]]


def has_checkpoint(folder: Path) -> bool:
    """Returns whether a folder has a file `checkpoint`, as the authors release theirs, or `checkpoint_<step>`."""
    return (folder / "checkpoint").is_file() or any(folder.glob("checkpoint_*"))


def checkpoint_file(path: str | Path) -> Path:
    """Returns the path if it is a file, or the `checkpoint_<step>` file with the largest step if it is a folder.

    Without any of these, the file `checkpoint` of the folder is returned.

    Raises:
        UserError: There is no checkpoint file.
    """
    path = Path(path)
    if path.is_file():
        return path
    names = {file: re.fullmatch(r"checkpoint_(\d+)", file.name) for file in path.glob("*")}
    steps = {int(match[1]): file for file, match in names.items() if match}
    if not steps and (path / "checkpoint").is_file():
        return path / "checkpoint"
    if not steps:
        raise UserError(f"{path} is neither a file nor a folder with checkpoint_<step> files")
    if not steps[max(steps)].is_file():
        raise UserError(f"{steps[max(steps)]} is a folder (orbax?), but only flax's msgpack files can be read")
    return steps[max(steps)]


def read_parameters(path: Path) -> Tree:
    """Reads the parameters in a train state of any flax version or a bare tree, with paths joined by "/".

    Raises:
        UserError: The file cannot be read, as in `read_flax`, or has no parameters.
    """
    tree: Any = read_flax(path)
    if "optimizer" in tree:  # This is the layout of train states before optax.
        tree = tree["optimizer"].get("target") if isinstance(tree["optimizer"], dict) else {}
    while isinstance(tree, dict) and "params" in tree:
        tree = tree["params"]
    params = flatten(tree) if isinstance(tree, dict) else {}
    strange = [name for name, value in params.items() if not isinstance(value, np.ndarray)]
    if strange or not params:
        raise UserError(f"{path} holds no parameters{f': {strange[0]!r} is not an array' if strange else ''}")
    return params


def flatten(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Flattens a tree, with paths joined by "/".

    Old flax numbered all modules of a parent together; they are renumbered by class, as in current flax.
    """
    numbers: dict[str, list[int]] = {}
    for name in tree:
        if match := re.fullmatch(r"([A-Z]\w*)_(\d{1,9})", name):
            numbers.setdefault(match[1], []).append(int(match[2]))
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if match := re.fullmatch(r"([A-Z]\w*)_(\d{1,9})", name):
            name = f"{match[1]}_{sorted(numbers[match[1]]).index(int(match[2]))}"
        flat |= flatten(value, f"{above}{name}/") if isinstance(value, dict) else {above + name: value}
    return flat


def read_flax(path: str | Path) -> dict[str, Any]:
    """Reads the tree of dicts, numbers, text, and arrays that flax's `msgpack_serialize` has written.

    bfloat16 arrays become float32.

    Raises:
        UserError: The file is damaged, is not a tree, or holds arrays of Python objects.
    """
    check_is_file(Path(path))
    if (size := Path(path).stat().st_size) > MAX_BYTES:
        raise UserError(f"{path} is refused: {size:,} bytes is too large for a flax checkpoint")
    try:
        tree = unchunk(msgpack.unpackb(Path(path).read_bytes(), ext_hook=unpack, raw=False, strict_map_key=False))
    except (
        msgpack.UnpackException,
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise UserError(f"{path} cannot be read as a flax checkpoint: it is damaged or another file") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path} is not a flax checkpoint: it does not contain a tree")
    return tree


def unpack(code: int, data: bytes) -> Any:
    """Decodes a msgpack extension type of flax."""
    if code == COMPLEX:
        return complex(*msgpack.unpackb(data))
    if code not in (ARRAY, SCALAR):
        raise ValueError(f"unknown extension type {code}")
    shape, name, buffer = msgpack.unpackb(data, raw=True)
    if name == b"bfloat16":  # numpy has no bfloat16, which is the upper half of a float32.
        array = (np.frombuffer(buffer, "<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        dtype = np.dtype(name.decode())
        if dtype.kind not in "biufc":
            raise ValueError(f"an array of {dtype.name}, which is not a dtype of weights")
        array = np.frombuffer(buffer, dtype)
    array = array.reshape(shape)
    return array[()] if code == SCALAR else array


def unchunk(tree: Any) -> Any:
    """Joins the arrays that flax has split."""
    if not isinstance(tree, dict):
        return tree
    if CHUNKED not in tree:
        return {str(key): unchunk(value) for key, value in tree.items()}
    shape, chunks = ([tree[part][str(i)] for i in range(len(tree[part]))] for part in ("shape", "chunks"))
    return np.concatenate(chunks).reshape(shape)


def write_flax(path: str | Path, tree: Mapping[str, Any]) -> None:
    """Writes a tree of dicts, plain numbers, and numpy arrays that flax's `msgpack_restore` can read."""
    Path(path).write_bytes(msgpack.packb(tree, default=pack, strict_types=True))


def pack(value: Any) -> msgpack.ExtType:
    """Encodes an array as a msgpack extension type of flax."""
    if not isinstance(value, np.ndarray):
        raise TypeError(f"a flax checkpoint cannot contain a {type(value).__name__}")
    return msgpack.ExtType(ARRAY, msgpack.packb((value.shape, value.dtype.name, value.tobytes())))
