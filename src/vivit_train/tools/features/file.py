"""Writes and reads files of features: safetensors, or npz for numpy.

Both hold `features` [N, ...], and `spans_s` [N, 2] if clips are parts of videos. The metadata of safetensors holds
`ids` and `about` as JSON; in npz, they are arrays of strings.
"""

import json
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from vivit_train.models.weights.files import refuse_bomb
from vivit_train.utils.arguments import conforms
from vivit_train.utils.errors import UserError
from vivit_train.utils.files import replacing
from vivit_train.utils.json_file import parse_json

ENDINGS = (".safetensors", ".npz")
TYPES = {"float32": "F32", "float16": "F16", "float64": "F64"}
CHUNK_BYTES = 1 << 26
Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Contents:
    """What a file of features holds beside them.

    Attributes:
        ids: The path or the URL of the video of each row, as it was given.
        spans_s: The start and the end of each clip in seconds, [N, 2], infinite for the end of a whole video; None
            if all clips are whole videos.
        about: Plain data: what the features are of.
    """

    ids: Sequence[str]
    spans_s: NDArray[np.float64] | None
    about: Mapping[str, Any]


def check_ending(file: Path) -> None:
    """Raises a UserError if the ending of a file names none of the formats."""
    if file.suffix not in ENDINGS:
        raise UserError(f"--out {file}: the file must end in {' or '.join(ENDINGS)}")


def write_features(file: Path, shape: Sequence[int], kind: str, chunks: Iterable[Array], about: Contents) -> None:
    """Writes a file, which appears only when it is complete. Equal features give equal bytes.

    Args:
        file: The file; its ending is the format.
        shape: The shape of the features, [N, ...].
        kind: The type of the numbers, "float32" or "float16".
        chunks: The features in order, in parts [n, ...] that need not be in memory at once.
        about: What else the file holds.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as part, part.open("wb") as stream:
        write = write_npz if file.suffix == ".npz" else write_safetensors
        write(stream, shape, kind, (chunk.astype(kind, copy=False) for chunk in chunks), about)


def write_safetensors(
    stream: IO[bytes], shape: Sequence[int], kind: str, chunks: Iterable[Array], about: Contents
) -> None:
    """Writes the format of safetensors: the length of a JSON header, the header, and the numbers."""
    metadata = {"ids": json.dumps(list(about.ids)), "about": json.dumps(about.about, sort_keys=True)}
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    header: dict[str, Any] = {"__metadata__": metadata}
    header["features"] = {"dtype": TYPES[kind], "shape": list(shape), "data_offsets": [0, size]}
    if about.spans_s is not None:
        offsets = [size, size + about.spans_s.nbytes]
        header["spans_s"] = {"dtype": "F64", "shape": list(about.spans_s.shape), "data_offsets": offsets}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers are aligned
    stream.write(struct.pack("<Q", len(text)) + text)
    for chunk in chunks:
        stream.write(np.ascontiguousarray(chunk).tobytes())
    if about.spans_s is not None:
        stream.write(np.ascontiguousarray(about.spans_s).tobytes())


def write_npz(
    stream: IO[bytes], shape: Sequence[int], kind: str, chunks: Iterable[Array], about: Contents
) -> None:
    """Writes a zip of .npy files, as numpy does."""
    texts: dict[str, Array] = {"ids": np.array(list(about.ids), dtype=np.str_)}
    texts["about"] = np.array(json.dumps(about.about, sort_keys=True))
    if about.spans_s is not None:
        texts["spans_s"] = about.spans_s
    with zipfile.ZipFile(stream, "w", allowZip64=True) as archive:
        # A ZipInfo has a fixed date, unlike a name.
        with archive.open(zipfile.ZipInfo("features.npy"), "w", force_zip64=True) as member:
            header = {"descr": np.dtype(kind).str, "fortran_order": False, "shape": tuple(shape)}
            np.lib.format.write_array_header_1_0(member, header)
            for chunk in chunks:
                member.write(np.ascontiguousarray(chunk).tobytes())
        for name, array in texts.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w") as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


@dataclass(frozen=True, eq=False)
class StoredFeatures:
    """A file of features.

    Attributes:
        file: The file.
        shape: The shape of the features, [N, ...].
        contents: What else the file holds.
    """

    file: Path
    shape: tuple[int, ...]
    contents: Contents

    def chunks(self) -> Iterator[Array]:
        """Yields the features in order, float32 [n, ...], in parts of at most `CHUNK_BYTES`, or of one row."""
        rows = max(1, CHUNK_BYTES // max(1, 4 * int(np.prod(self.shape[1:]))))
        places = range(0, self.shape[0], rows)
        if self.file.suffix == ".npz":
            with np.load(self.file, allow_pickle=False) as arrays:
                whole = arrays["features"]
            yield from (whole[i : i + rows].astype(np.float32) for i in places)
            return
        with safe_open(self.file, "np") as opened:
            part = opened.get_slice("features")
            yield from (np.asarray(part[i : min(i + rows, self.shape[0])]).astype(np.float32) for i in places)


def read_features(file: Path) -> StoredFeatures:
    """Opens a file of features, which may come from a stranger; nothing in it is executed.

    Raises:
        UserError: The file is missing or damaged, or holds no features with ids.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file; vivit features CKPT VIDEO... --out {file} writes it")
    read = read_npz if file.suffix == ".npz" else read_safetensors
    try:
        shape, spans_s, ids, about = read(file)
    except (SafetensorError, OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"{file} is not a file of features, or is damaged") from error
    parse = partial(parse_json, file=file)
    listed, stated = parse(ids) if isinstance(ids, str) else ids, parse(about)
    is_whole = conforms(listed, list[str]) and isinstance(stated, dict) and len(shape) >= 2 and min(shape) > 0
    is_whole = is_whole and len(listed) == shape[0] and (spans_s is None or spans_s.shape == (shape[0], 2))
    if not is_whole:
        raise UserError(f"{file} is not a file of features: it does not have an id for each row")
    return StoredFeatures(file, shape, Contents(listed, spans_s, stated))


def read_safetensors(file: Path) -> tuple[tuple[int, ...], NDArray[np.float64] | None, Any, str]:
    """Returns the shape of the features, the spans, the ids as JSON, and what the features are of as JSON."""
    with safe_open(file, "np") as opened:
        metadata = opened.metadata() or {}
        features = opened.get_slice("features")
        shape, kind = tuple(features.get_shape()), features.get_dtype()
        if kind not in TYPES.values():
            raise ValueError(f"its features are {kind}")
        spans_s = opened.get_tensor("spans_s") if "spans_s" in opened.keys() else None  # noqa: SIM118
    return shape, spans_s, metadata["ids"], metadata["about"]


def read_npz(file: Path) -> tuple[tuple[int, ...], NDArray[np.float64] | None, Any, str]:
    """Returns the shape of the features, the spans, the ids as a list, and what the features are of as JSON."""
    refuse_bomb(file)
    with np.load(file, allow_pickle=False) as arrays:
        if not {"features", "ids", "about"} <= set(arrays.files):
            raise ValueError("it lacks features, ids or about")
        spans_s = arrays["spans_s"] if "spans_s" in arrays.files else None
        features = arrays["features"]
        if features.dtype.name not in TYPES:
            raise ValueError(f"its features are {features.dtype}")
        return features.shape, spans_s, arrays["ids"].tolist(), str(arrays["about"])
