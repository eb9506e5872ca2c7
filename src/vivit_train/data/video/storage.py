"""Resolves the path of a video to a place and reads its bytes. This module does not interpret the bytes.

    videos/a.mp4               a file
    s3://bucket/videos/a.mp4   an object in a file system that fsspec supports: https, gs, hf, memory, ...
    shards/000.tar/run/a.mp4   a member of an uncompressed tar, which may also be at a URL
    frames/a                   a folder of pictures in any of these places; frame i is the i-th picture by name

No file is kept open here, so no open file is shared by a fork. fsspec opens new connections in a new process.
"""

import io
import os
import posixpath
import re
import tarfile
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from stat import S_ISDIR, S_ISREG
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from vivit_train.data.video.urls import ALLOWS_PRIVATE, fetch_error, fetching, filesystem_of, is_url
from vivit_train.utils.errors import UserError, VideoError, reason

WHOLE_BYTES = 64 << 20  # Objects up to this size are fetched at once; larger ones are fetched in blocks on demand.
FIRST_BLOCK = 1 << 16  # the block size in bytes for reading the headers of a tar
_TAR = re.compile(
    rf"(.+?\.(?:tar(\.(?:gz|bz2|xz|zst|lz4))?|(tgz|tbz2?|txz|tzst)))(?:[/{re.escape(os.sep)}](.*))?", re.IGNORECASE
)
_PICTURE = re.compile(r"[^.].*\.(?:jpe?g|png|webp)", re.IGNORECASE)
_NUMBER = re.compile(r"(\d+)")


class State(NamedTuple):
    """The current state of a file or folder.

    Attributes:
        version: A number that changes with the content: the time stamp in nanoseconds, or a hash of the server's
            metadata.
        size: The size in bytes; -1 if the server does not report it.
        is_folder: Whether the path is a folder.
    """

    version: int
    size: int
    is_folder: bool


class _Place(Protocol):
    """The place of a path: a disk, a URL or a tar. Its methods raise `VideoError`."""

    def state(self) -> State: ...
    def names(self) -> list[str]: ...  # the entries of the folder, in any order
    def read(self) -> bytes: ...
    def opened(self) -> AbstractContextManager[str | BinaryIO]: ...


def state(path: str) -> State:
    """Returns the current state of a path.

    Raises:
        VideoError: If nothing exists there, or if it cannot be queried.
        UserError: If this kind of place is not supported.
    """
    return _place(path).state()


def listing(folder: str) -> frozenset[str]:
    """Returns the names of the files and folders in a folder; empty if the folder does not exist.

    Raises:
        VideoError: If the folder cannot be listed.
        UserError: If this kind of place is not supported.
    """
    try:
        return frozenset(_place(folder).names())
    except VideoError as error:
        if error.kind == "missing":
            return frozenset()
        raise


def pictures(folder: str) -> list[str]:
    """Returns the paths of the pictures in a folder in natural order, with img_2 before img_10."""
    names = filter(is_picture, listing(folder))
    return [join(folder, name) for name in sorted(names, key=lambda name: (_natural(name), name))]


def read(path: str) -> bytes:
    """Reads the whole file."""
    return _place(path).read()


def opened(path: str) -> AbstractContextManager[str | BinaryIO]:
    """Returns a context manager that yields the input for FFmpeg: a name with its protocol, or a binary file."""
    return _place(path).opened()


def members(tar: str) -> list[str]:
    """Returns the names of the files in a tar, sorted."""
    return list(_index(tar, *_place_of_tar(tar).state()[:2]).names)


def is_plain(path: str) -> bool:
    """Returns whether the path is on the disk and not in a tar, so that any library can open it."""
    return not is_url(path) and isinstance(_place(path), _Disk)


def is_picture(name: str) -> bool:
    """Returns whether a file is a picture, judging by its name."""
    return _PICTURE.fullmatch(name) is not None


def folder_and_name(path: str) -> tuple[str, str]:
    """Splits a path into folder and name like `os.path.split`, which would cut "s3://bucket" incorrectly."""
    if not is_url(path):
        return os.path.split(path)
    start = path.rindex("/") + 1
    return path[:start], path[start:]


def join(folder: str, name: str) -> str:
    """Joins a folder and a name, for URLs and for paths on the disk."""
    return f"{folder.rstrip('/')}/{name}" if is_url(folder) else os.path.join(folder, name)


def _natural(name: str) -> list[str | int]:
    return [int(part) if i % 2 else part for i, part in enumerate(_NUMBER.split(name))]


def _place(path: str) -> _Place:
    path = path.removeprefix("file://")
    match = _TAR.fullmatch(path)
    if match and (is_url(path) or os.path.isfile(match[1])):
        tar, *compressed, member = match.groups()
        if any(compressed):
            why = "reading a video in it means decompressing all data before it"
            raise UserError(f"{tar} is compressed: {why}. Convert it to a plain .tar")
        return _Member(tar, (member or "").replace(os.sep, "/").rstrip("/"))
    return _Url(path) if is_url(path) else _Disk(path)


@dataclass(frozen=True, slots=True)
class _Disk:
    """A path on the disk."""

    path: str

    def state(self) -> State:
        try:
            status = os.stat(self.path)
        except (OSError, ValueError) as error:
            if isinstance(error, ValueError):  # the name contains a zero byte
                raise VideoError(self.path, reason(error), kind="missing") from error
            if isinstance(error, FileNotFoundError | NotADirectoryError):
                raise VideoError(self.path, "file does not exist", kind="missing") from error
            raise VideoError(self.path, error.strerror or reason(error)) from error
        if not S_ISREG(status.st_mode) and not S_ISDIR(status.st_mode):  # opening a pipe would block forever
            raise VideoError(self.path, "is not a regular file")
        return State(status.st_mtime_ns, status.st_size, S_ISDIR(status.st_mode))

    def names(self) -> list[str]:
        try:
            return os.listdir(self.path) if os.path.isdir(self.path) else []
        except OSError as error:
            raise VideoError(self.path, error.strerror or reason(error)) from error

    def read(self) -> bytes:
        self.state()  # raises an error for a pipe, which would block forever when opened
        try:
            with open(self.path, "rb") as file:
                return file.read()
        except OSError as error:
            raise VideoError(self.path, error.strerror or reason(error)) from error

    @contextmanager
    def opened(self) -> Iterator[str]:
        yield f"file:{self.path}"  # the prefix is needed because names may contain colons


@dataclass(frozen=True, slots=True)
class _Url:
    """A URL that fsspec reads."""

    url: str

    def state(self) -> State:
        return _url_state(self.url, ALLOWS_PRIVATE.get())

    def names(self) -> list[str]:
        with fetching(self.url):
            filesystem, path = filesystem_of(self.url)
            if self.url.startswith(("http://", "https://")):
                raise VideoError(self.url, "web servers do not list folders")
            return [name.rstrip("/").rpartition("/")[2] for name in filesystem.ls(path, detail=False)]

    def read(self, start: int | None = None, end: int | None = None) -> bytes:
        with fetching(self.url):
            filesystem, path = filesystem_of(self.url)
            data: bytes = filesystem.cat_file(path, start=start, end=end)
        return data

    @contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        if self.state().size <= WHOLE_BYTES:
            yield io.BytesIO(_fetched(self.url, None, None))
            return
        with fetching(self.url):
            filesystem, path = filesystem_of(self.url)
            file = filesystem.open(path)
        with file:
            try:
                yield file
            except OSError as error:  # FFmpeg requested a block that could not be fetched
                raise VideoError(self.url, fetch_error(error)) from error


@dataclass(frozen=True, slots=True)
class _Member:
    """A member of a tar, or a folder in a tar."""

    tar: str
    name: str  # "" is the top folder of the tar

    @property
    def path(self) -> str:
        return f"{self.tar}/{self.name}"

    def table(self) -> tuple[int, "_Index"]:
        """Returns the version and the index of the tar."""
        try:
            tar = _place_of_tar(self.tar).state()
            return tar.version, _index(self.tar, tar.version, tar.size)
        except VideoError as error:
            raise VideoError(self.path, error.reason, kind=error.kind) from error

    def state(self) -> State:
        version, index = self.table()
        at = index.find(self.name)
        if at is not None:
            return State(version, int(index.extents[at, 1]), is_folder=False)
        if not len(index.below(self.name)):
            raise VideoError(self.path, f"file does not exist: {self.tar} has no such member", kind="missing")
        return State(version, 0, is_folder=True)

    def names(self) -> list[str]:
        _, index = self.table()
        start = len(self.name) + 1 if self.name else 0
        return list({name[start:].partition("/")[0] for name in index.below(self.name)})

    def extent(self) -> tuple[int, int]:
        """Returns the byte range of the member in the tar; the end is exclusive."""
        _, index = self.table()
        at = index.find(self.name)
        if at is None:
            raise VideoError(self.path, f"file does not exist: {self.tar} has no such member", kind="missing")
        start, size = index.extents[at].tolist()
        return start, start + size

    def read(self) -> bytes:
        start, end = self.extent()
        if is_url(self.tar):
            data = _Url(self.tar).read(start, end)
        else:
            with open(self.tar, "rb") as file:
                file.seek(start)
                data = file.read(end - start)
        if len(data) != end - start:
            raise VideoError(self.path, f"only {len(data)} of its {end - start} bytes are there", kind="truncated")
        return data

    @contextmanager
    def opened(self) -> Iterator[str | BinaryIO]:
        start, end = self.extent()
        if is_url(self.tar):
            yield io.BytesIO(self.read())
        else:
            yield f"subfile,,start,{start},end,{end},,:file:{self.tar}"


def _place_of_tar(tar: str) -> _Disk | _Url:
    return _Url(tar) if is_url(tar) else _Disk(tar)


class _Index(NamedTuple):
    """The index of the files in a tar, stored as columns because a data set may have millions of files.

    Attributes:
        names: The sorted names of the files, a StringDType array [n].
        extents: The first byte and the number of bytes of each file, [n, 2].
    """

    names: NDArray[Any]
    extents: NDArray[np.int64]

    def find(self, name: str) -> int | None:
        """Returns the position of a file in the index, or None if the tar has no such member."""
        at = bisect_left(self.names, name)
        return at if at < len(self.names) and self.names[at] == name else None

    def below(self, folder: str) -> NDArray[Any]:
        """Returns the names of all files below a folder; "" is the top folder."""
        # "0" is the character after "/".
        first, last = (f"{folder}/", f"{folder}0") if folder else ("", chr(0x10FFFF))
        return self.names[bisect_left(self.names, first) : bisect_left(self.names, last)]


@lru_cache(maxsize=4096)  # the index of a million files takes 70 MB
def _index(tar: str, version: int, size: int) -> _Index:
    """Reads the headers of a tar and returns its index. Forked workers inherit the cache of their parent."""
    found: dict[str, tuple[int, int]] = {}
    try:
        with _opened_tar(tar) as file, tarfile.open(fileobj=file, mode="r:", errors="replace") as archive:
            for member in archive:
                if member.size < 0:  # The next header would be this one again, without end.
                    raise tarfile.HeaderError(f"a member claims {member.size} bytes")
                if member.isreg() and not member.issparse():
                    found[posixpath.normpath(member.name).lstrip("/")] = member.offset_data, member.size
    # tarfile raises the others for numbers that are absurd or none, and for headers of headers without end.
    except (tarfile.TarError, OSError, ValueError, OverflowError, RecursionError, MemoryError) as error:
        raise VideoError(tar, "not an uncompressed tar archive, or damaged") from error
    names = sorted(found)
    extents = np.array([found[name] for name in names], np.int64).reshape(-1, 2)
    return _Index(np.array(names, np.dtypes.StringDType()), extents)


@contextmanager
def _opened_tar(tar: str) -> Iterator[BinaryIO]:
    if not is_url(tar):
        with open(tar, "rb") as local:
            yield local
        return
    with fetching(tar):
        filesystem, path = filesystem_of(tar)
        with filesystem.open(path, block_size=FIRST_BLOCK) as file:
            yield file


@lru_cache(maxsize=10_000)  # a query to a server takes a tenth of a second
def _url_state(url: str, allows_private: bool) -> State:
    with fetching(url):
        filesystem, path = filesystem_of(url)
        info = filesystem.info(path)
    version = int(sha256(repr(info).encode()).hexdigest()[:12], 16)
    size = info.get("size")
    return State(version, -1 if size is None else int(size), info["type"] == "directory")


@lru_cache(maxsize=1)  # a video is opened twice, for the scan and for the read
def _fetched(url: str, start: int | None, end: int | None) -> bytes:
    return _Url(url).read(start, end)
