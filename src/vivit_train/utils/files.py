"""Reads and writes the files of a folder that may come from a stranger. Hydra imports this module at startup."""

import csv
import io
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vivit_train.utils.errors import UserError, reason

MAX_BYTES = 1 << 26  # A file that a run writes and reads again is much smaller.
MAX_TABLE_BYTES = 1 << 30  # predictions.csv has a row per video and a column per class.


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Yields a path beside `file` to write to, which replaces `file` when the context ends without an error.

    After an error, or a Ctrl-C, the path is deleted and `file` is as it was. A process that is killed leaves
    `.NAME.PID.part`. If `file` is a link, it is replaced, and what it leads to stays as it is.
    """
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)  # It could be a link.
    try:
        yield part
        part.replace(file)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def check_is_file(file: Path) -> None:
    """Checks that opening a file does not block, as it does for a pipe.

    Raises:
        UserError: The file is missing, a folder, a pipe or a device.
    """
    if not file.is_file():
        kind = "it is not a file" if file.exists() else "there is no such file"
        raise UserError(f"{file} cannot be read: {kind}")


def read_text(file: Path, max_bytes: int = MAX_BYTES, errors: str = "strict") -> str:
    """Returns the UTF-8 text of a file, with its line breaks as they are.

    Args:
        file: The file.
        max_bytes: The largest size. A few bytes in an archive can unpack to a file that exhausts memory.
        errors: The treatment of bytes that are not UTF-8, as in `bytes.decode`.

    Raises:
        UserError: The file is missing, a pipe or a device, too large, or not UTF-8.
    """
    try:
        check_is_file(file)
        if (size := file.stat().st_size) > max_bytes:
            raise UserError(f"{file} cannot be read: it has {size:,} bytes, more than the {max_bytes:,} allowed")
        return file.read_bytes().decode(errors=errors)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {reason(error)}") from error


def read_table(file: Path, max_bytes: int = MAX_BYTES, errors: str = "strict") -> list[list[str]]:
    """Returns the rows of a CSV file; see `read_text`.

    Raises:
        UserError: The file cannot be read, or is not CSV.
    """
    text = io.StringIO(read_text(file, max_bytes, errors), newline="")
    try:
        return list(csv.reader(text))
    except csv.Error as error:
        raise UserError(f"{file} cannot be read as a table: {reason(error)}") from error


def read_records(file: Path) -> list[dict[str, str]]:
    """Returns the rows of a CSV file with a header, such as predictions.csv, by column; see `read_text`.

    Raises:
        UserError: The file cannot be read, is not CSV, or has a row that is longer or shorter than the header.
    """
    header, *rows = read_table(file, MAX_TABLE_BYTES) or [[]]
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise UserError(f"{file}: row {number} has {len(row)} cells, but the header has {len(header)}")
    return [dict(zip(header, row, strict=True)) for row in rows]


def check_folder(folder: str | Path, places: Iterable[str], advice: str) -> None:
    """Checks that a program can write to a folder that may come from a stranger, without effects elsewhere.

    A link called metrics.csv could lead to any file of this user, and opening a named pipe would block.

    Args:
        folder: The folder.
        places: The folders within it that the program writes to, relative to it.
        advice: What to do instead, for the message.

    Raises:
        UserError: An entry of one of these folders is a link that leads outside, a pipe or a device.
    """
    top = os.path.realpath(folder)
    for place in (os.path.join(top, place) for place in places):
        for name in sorted(os.listdir(place)) if os.path.isdir(place) else ():
            path = os.path.join(place, name)
            real = os.path.realpath(path)
            if os.path.islink(path) and not real.startswith(f"{top}{os.sep}"):
                raise UserError(
                    f"{path} is a link out of the folder, to {real}: replace it with a file or folder, or {advice}"
                )
            if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
                raise UserError(f"{path} is a pipe or a device, not a file: delete it, or {advice}")
