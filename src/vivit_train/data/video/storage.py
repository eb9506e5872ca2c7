"""What the path of a video stands for, and how its bytes are had. Nothing here knows what a video is.

    videos/a.mp4               a file
    s3://bucket/videos/a.mp4   an object on anything that fsspec reads: https, gs, hf, memory, ...
    shards/000.tar/run/a.mp4   a member of an uncompressed tar, which may be on a URL as well
    frames/a                   a folder of pictures in any of these places: frame i is the i-th by name

Nothing is kept open here, so nothing open crosses a fork: fsspec makes new connections in a new process.
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

WHOLE_BYTES = 64 << 20  # an object up to this size is fetched at once, a larger one in blocks as they are read
FIRST_BLOCK = 1 << 16  # bytes that are fetched at once where only the headers of a tar are read
_TAR = re.compile(
    rf"(.+?\.(?:tar(\.(?:gz|bz2|xz|zst|lz4))?|(tgz|tbz2?|txz|tzst)))(?:[/{re.escape(os.sep)}](.*))?", re.IGNORECASE
)
_PICTURE = re.compile(r"[^.].*\.(?:jpe?g|png|webp)", re.IGNORECASE)
_NUMBER = re.compile(r"(\d+)")


class State(NamedTuple):
    """What is at a path now."""

    version: int  # another one where it has changed: its time in nanoseconds, or a hash of a server's answer
    size: int  # in bytes; -1 where a server does not say
    is_folder: bool


class _Place(Protocol):
    """Where a path leads. Its methods raise `VideoError`."""

    def state(self) -> State: ...
    def names(self) -> list[str]: ...  # of what is in this folder, in any order
    def read(self) -> bytes: ...
    def opened(self) -> AbstractContextManager[str | BinaryIO]: ...


def state(path: str) -> State:
    """What is there.

    Raises:
        VideoError: nothing is, or it cannot be asked.
        UserError: its kind of place cannot be read here.
    """
    return _place(path).state()


def listing(folder: str) -> frozenset[str]:
    """Names of the files and folders in a folder, which are none where there is no such folder.

    Raises:
        VideoError: it cannot be listed.
        UserError: its kind of place cannot be read here.
    """
    try:
        return frozenset(_place(folder).names())
    except VideoError as error:
        if error.kind == "missing":
            return frozenset()
        raise


def pictures(folder: str) -> list[str]:
    """Paths of the pictures in a folder, in natural order: img_2 before img_10."""
    names = filter(is_picture, listing(folder))
    return [join(folder, name) for name in sorted(names, key=lambda name: (_natural(name), name))]


def read(path: str) -> bytes:
    """The whole file."""
    return _place(path).read()


def opened(path: str) -> AbstractContextManager[str | BinaryIO]:
    """A context manager that gives what FFmpeg is to open: a name with its protocol, or a binary file."""
    return _place(path).opened()


def members(tar: str) -> list[str]:
    """Names of the files in a tar, sorted."""
    return list(_index(tar, *_place_of_tar(tar).state()[:2]).names)


def is_plain(path: str) -> bool:
    """Whether any library can open it by its name: it is on the disk, and in no tar."""
    return not is_url(path) and isinstance(_place(path), _Disk)


def is_picture(name: str) -> bool:
    return _PICTURE.fullmatch(name) is not None


def folder_and_name(path: str) -> tuple[str, str]:
    """A path's folder and name, as `os.path.split`, which would cut "s3://bucket" short."""
    if not is_url(path):
        return os.path.split(path)
    start = path.rindex("/") + 1
    return path[:start], path[start:]


def join(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}" if is_url(folder) else os.path.join(folder, name)


def _natural(name: str) -> list[str | int]:
    return [int(part) if i % 2 else part for i, part in enumerate(_NUMBER.split(name))]


def _place(path: str) -> _Place:
    path = path.removeprefix("file://")
    match = _TAR.fullmatch(path)
    if match and (is_url(path) or os.path.isfile(match[1])):
        tar, *compressed, member = match.groups()
        if any(compressed):
            why = "a video in it cannot be read without all that is before it"
            raise UserError(f"{tar} is compressed: {why}. Unpack it to a plain .tar")
        return _Member(tar, (member or "").replace(os.sep, "/").rstrip("/"))
    return _Url(path) if is_url(path) else _Disk(path)


@dataclass(frozen=True, slots=True)
class _Disk:
    path: str

    def state(self) -> State:
        try:
            status = os.stat(self.path)
        except (OSError, ValueError) as error:
            if isinstance(error, ValueError):  # a zero byte in its name
                raise VideoError(self.path, reason(error), kind="missing") from error
            if isinstance(error, FileNotFoundError | NotADirectoryError):
                raise VideoError(self.path, "file does not exist", kind="missing") from error
            raise VideoError(self.path, error.strerror or reason(error)) from error
        if not S_ISREG(status.st_mode) and not S_ISDIR(status.st_mode):  # opening a pipe waits for ever
            raise VideoError(self.path, "is no regular file")
        return State(status.st_mtime_ns, status.st_size, S_ISDIR(status.st_mode))

    def names(self) -> list[str]:
        try:
            return os.listdir(self.path) if os.path.isdir(self.path) else []
        except OSError as error:
            raise VideoError(self.path, error.strerror or reason(error)) from error

    def read(self) -> bytes:
        self.state()  # which refuses a pipe: opening it waits for ever
        try:
            with open(self.path, "rb") as file:
                return file.read()
        except OSError as error:
            raise VideoError(self.path, error.strerror or reason(error)) from error

    @contextmanager
    def opened(self) -> Iterator[str]:
        yield f"file:{self.path}"  # "file:", as names may contain colons


@dataclass(frozen=True, slots=True)
class _Url:
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
            except OSError as error:  # from within FFmpeg, which asks for the next block
                raise VideoError(self.url, fetch_error(error)) from error


@dataclass(frozen=True, slots=True)
class _Member:
    tar: str
    name: str  # "" for the tar itself, as a folder

    @property
    def path(self) -> str:
        return f"{self.tar}/{self.name}"

    def table(self) -> tuple[int, "_Index"]:
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
        """Where its first byte is, and where that behind its last."""
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
            raise VideoError(self.path, f"{len(data)} bytes came back of its {end - start}", kind="truncated")
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
    """Where the files of a tar are. Columns, as a data set may have millions."""

    names: NDArray[Any]  # of numpy's StringDType, sorted
    extents: NDArray[np.int64]  # first byte and number of bytes of each, [n, 2]

    def find(self, name: str) -> int | None:
        at = bisect_left(self.names, name)
        return at if at < len(self.names) and self.names[at] == name else None

    def below(self, folder: str) -> NDArray[Any]:
        """The names that begin with this folder's; all for ""."""
        first, last = (f"{folder}/", f"{folder}0") if folder else ("", chr(0x10FFFF))  # "0" follows "/"
        return self.names[bisect_left(self.names, first) : bisect_left(self.names, last)]


@lru_cache(maxsize=4096)  # a million files take 70 MB
def _index(tar: str, version: int, size: int) -> _Index:
    """Reads a tar's headers. Forked workers find here what their parent has read."""
    found: dict[str, tuple[int, int]] = {}
    try:
        with _opened_tar(tar) as file, tarfile.open(fileobj=file, mode="r:", errors="replace") as archive:
            for member in archive:
                if member.isreg() and not member.issparse():
                    found[posixpath.normpath(member.name).lstrip("/")] = member.offset_data, member.size
    except (tarfile.TarError, OSError) as error:
        why = f"not an uncompressed tar archive, or damaged ({reason(error)})"
        raise VideoError(tar, why) from error
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


@lru_cache(maxsize=10_000)  # asked once: a server takes a tenth of a second to say it
def _url_state(url: str, allows_private: bool) -> State:
    with fetching(url):
        filesystem, path = filesystem_of(url)
        info = filesystem.info(path)
    version = int(sha256(repr(info).encode()).hexdigest()[:12], 16)
    size = info.get("size")
    return State(version, -1 if size is None else int(size), info["type"] == "directory")


@lru_cache(maxsize=1)  # a video is opened to be probed and again to be read
def _fetched(url: str, start: int | None, end: int | None) -> bytes:
    return _Url(url).read(start, end)
