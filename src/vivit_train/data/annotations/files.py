"""Finds and reads annotation files, and lists videos."""

import csv
import errno
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from vivit_train.data.annotations.table import StrPath
from vivit_train.data.video.storage import folder_and_name, is_picture, join, listing
from vivit_train.data.video.urls import is_url
from vivit_train.utils.errors import UserError, VideoError, reason
from vivit_train.utils.files import check_is_file
from vivit_train.utils.json_file import parse_json
from vivit_train.utils.text import LONGEST, SHOWN, loose_name, nfc, printable, shorten, shorten_list

MAX_BYTES = 1 << 30  # The largest published annotation files have a tenth of that.
VIDEO_EXTENSIONS = (
    *("mp4", "avi", "mkv", "webm", "mov", "m4v", "mpg", "mpeg", "wmv", "flv", "ts", "3gp", "3g2", "asf"),
    *("divx", "f4v", "gif", "m2ts", "mts", "mxf", "ogv", "rm", "rmvb", "vob"),
)
VIDEO_PATTERN = rf"\.(?:{'|'.join(VIDEO_EXTENSIONS)})"
IS_VIDEO = re.compile(rf"[^.].*{VIDEO_PATTERN}", re.IGNORECASE | re.DOTALL)
_NAME_ID = re.compile(r".+,\s*\d+")  # as in the class file of Moments in Time
PLACES = ("{}", "annotations/{}")  # the places below root in which annotation files are searched


class NoClassesError(UserError):
    """Nothing defines the classes: there are neither training annotations nor a class file."""


class Listings:
    """Finds files with one listing per folder, since a stat per file takes minutes on network disks.

    Attributes:
        names: The names in each listed folder, by their composed form; None if the folder cannot be listed.
        notices: A notice for each folder that cannot be listed. Its files are assumed to exist.
        near_misses: For each missing path, a name in its folder that differs only in case, blanks or extension.
    """

    def __init__(self) -> None:
        self.names: dict[str, dict[str, str] | None] = {}
        self.notices: list[str] = []
        self.near_misses: dict[str, str] = {}
        self._loose: dict[str, dict[str, str]] = {}
        self._folders: dict[str, str | None] = {}

    def find(self, path: str) -> str | None:
        """Returns the path under which a file exists, or None. Its names may have another form in Unicode.

        Raises:
            UserError: If this user may not look into the folder.
        """
        folder, name = folder_and_name(path)
        if folder not in self.names:
            self.names[folder] = self.list(folder)
        names = self.names[folder]
        if names is None or names.get(name) == name:
            return path
        if there := names.get(nfc(name)):
            return join(folder, there)
        if not names and not is_url(path):
            return self._below_other_form(folder, name)
        if folder not in self._loose:
            by_stem = {loose_name(os.path.splitext(known)[0]): known for known in names}
            self._loose[folder] = by_stem | {loose_name(known): known for known in names}
        if near := self._loose[folder].get(loose_name(name)):
            self.near_misses[path] = near
        return None

    def _below_other_form(self, folder: str, name: str) -> str | None:
        """Returns the path of a file whose folder does not exist under the name as written, or None."""
        if folder not in self._folders:
            self._folders[folder] = None
            try:
                os.stat(folder)
            except (FileNotFoundError, NotADirectoryError):
                there = self.find(folder)
                self._folders[folder] = None if there == folder else there
            except OSError as error:
                raise_unreadable(error)
        there = self._folders[folder]
        return None if there is None else self.find(os.path.join(there, name))

    def list(self, folder: str) -> dict[str, str] | None:
        """Returns the names in a folder, or None and a notice if the folder cannot be listed."""
        try:
            return {nfc(name): name for name in listing(folder)}
        except VideoError as error:
            if not is_url(folder) and not os.access(folder, os.X_OK):
                raise_unreadable(PermissionError(errno.EACCES, error.reason, folder))
            self.notices.append(f"{folder}: {error.reason}; its videos are assumed to exist")
            return None

    def near_miss_notice(self) -> str:
        """Returns a text about missing files that exist under a similar name, or "" if there are none."""
        if not self.near_misses:
            return ""
        pairs = [f"{path} (there is {name!r})" for path, name in self.near_misses.items()]
        return (
            f"names that differ from a file's only in case or blanks, or by an extension: {shorten_list(pairs, 2)}"
        )


def read_classes(file: Path) -> tuple[str, ...]:
    """Reads a class file and returns the names by id.

    The file has one name per line, or lines `name,id`, or columns `id,name` or `id,key,...` with a header, or JSON
    {name: id}.

    Raises:
        UserError: If the file is malformed, or if a name is empty or occurs twice.
    """
    names = "\n".join(read_lines(file)).rstrip().split("\n")
    header = names[0].replace(" ", "").lower()
    expected = "one name per line, neither empty nor repeated; the first line is class 0"
    form, pairs = "", []
    if file.suffix.lower() == ".json":
        known = parse_json("\n".join(read_lines(file)), file)
        form, pairs = (
            "{name: id}",
            [(str(i), name) for name, i in known.items()] if isinstance(known, dict) else [],
        )
    elif header == "id,name":
        form, pairs = "id,name", [line.partition(",")[::2] for line in names[1:]]
    elif header.startswith("id,key,"):
        try:
            rows = list(filter(None, csv.reader(names[1:])))
        except csv.Error as error:
            raise UserError(f"{file} cannot be read as `id,key,...`: {reason(error)}") from None
        form, pairs = "id,key,...", [(row[0], "".join(row[1:2])) for row in rows]
    elif all(map(_NAME_ID.fullmatch, names)):
        form, pairs = "name,id", [line.rpartition(",")[::-2] for line in names]
    if form:
        by_id = {number.strip(): unquote(name.strip()) for number, name in pairs}
        names = [by_id.get(str(i), "") for i in range(len(pairs))]
        expected = f"`{form}` with ids 0 to {len(pairs) - 1}, each once"
        if not names:
            raise UserError(f"no classes in {file}; expected {expected}")
    count = Counter(names)
    wrong = [f"class {i}: {name!r}" for i, name in enumerate(names) if not name or count[name] > 1]
    if wrong:
        raise_listed(f"invalid class names in {file}", wrong, f"Expected {expected}.")
    return tuple(names)


def cells(line: str) -> list[str]:
    """Returns the cells of a CSV line, or one empty cell if a cell exceeds the csv module's limit of 128 KiB."""
    try:  # parsing line by line limits the damage of a stray quote to one row
        return next(csv.reader([line]), [])
    except csv.Error:
        return [""]


def read_lines(file: Path) -> list[str]:
    """Reads a UTF-8 text file and returns its lines without surrounding blanks.

    Raises:
        UserError: If the file is not UTF-8, contains a zero byte, or is larger than `MAX_BYTES`.
    """
    if file.exists():
        check_is_file(file)
    try:
        with file.open("rb") as stream:  # A file of the kernel claims 0 bytes, but reading it may never end.
            size = os.fstat(stream.fileno()).st_size
            if size > MAX_BYTES:
                raise UserError(
                    f"{file} has {size:,} bytes, but an annotation file may have {MAX_BYTES:,}: split it"
                )
            text = stream.read(size).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    lines = re.split(r"\r\n|\n|\r", text)
    if "\0" in text:
        number = next(i for i, line in enumerate(lines, 1) if "\0" in line)
        raise UserError(f"{file}:{number}: contains a zero byte; is the file damaged?")
    return [line.strip() for line in lines]


def numbered_lines(file: Path) -> Iterator[tuple[str, str]]:
    """Yields the place of each line as file:line, and the line without surrounding blanks; see `read_lines`."""
    for number, line in enumerate(read_lines(file), 1):
        yield f"{file}:{number}", line


def open_root(root: StrPath, expected_layout: str) -> tuple[Path, str]:
    """Returns the absolute path of the data set's folder, and `expected_layout` with that path filled in.

    Raises:
        UserError: If the folder does not exist or is a URL.
    """
    if is_url(os.fspath(root)):
        raise UserError(
            f"data.root={root} is a URL, but annotation files are read only from the disk; "
            "use data=csv data.root=FOLDER and list the URLs of the videos in the annotation files"
        )
    path = Path(os.path.abspath(os.path.expanduser(root)))
    expected_layout = expected_layout.format(root=printable(path))
    if not os.path.isdir(path):  # Path.is_dir raises an error for a name that is too long.
        raise UserError(f"no folder {printable(path)}; set the data set's root.\n{expected_layout}")
    return path, expected_layout


def find_files(
    root: Path,
    expected_layout: str,
    train: StrPath | None,
    val: StrPath,
    test: StrPath | None,
    classes: StrPath | Sequence[str] | None,
    places: Sequence[str] = PLACES,
) -> dict[str, Path]:
    """Returns the annotation file of each split.

    Raises:
        UserError: If a file is missing.
        NoClassesError: If there is neither a training file nor a class file.
    """
    if not val:
        raise UserError(f"no validation annotations; set data.val=<file>.\n{expected_layout}")
    if not train and not classes:
        raise NoClassesError(
            "without training annotations (data.train=null), data.reader.classes=<file> must define the classes"
        )
    wanted = {"train": train, "val": val, "test": test}
    return {split: find_file(root, expected_layout, split, file, places) for split, file in wanted.items() if file}


def find_file(root: Path, expected_layout: str, what: str, file: StrPath, places: Sequence[str] = PLACES) -> Path:
    """Returns the first existing file among `places` below root and the path as given.

    Args:
        root: The data set's folder.
        expected_layout: A description of the expected files, for messages.
        what: The role of the file, for messages.
        file: The name or the path of the file.
        places: The paths below root to search; "{}" stands for `file`.

    Raises:
        UserError: If the file does not exist in any of these places.
    """
    # Root comes first, because a train.csv in the working directory may belong to another data set.
    below_root = () if os.path.isabs(file) else [root / place.replace("{}", os.fspath(file)) for place in places]
    candidates = [*below_root, Path(os.path.abspath(os.path.expanduser(file)))]
    for candidate in candidates:
        if os.path.isfile(candidate):  # Path.is_file raises an error for a name that is too long.
            return candidate
    endings = ("csv", "tsv", "txt", "json")
    patterns = [f"{folder}*.{ending}" for folder in ("", "annotations/") for ending in endings]
    there = [path.relative_to(root) for pattern in patterns for path in sorted(root.glob(pattern))]
    raise UserError(
        f"no {what} file {printable(file)}; looked for {shorten_list(candidates)}\n"
        f"Annotation files in {printable(root)}: {shorten_list(there) or 'none'}.\n{expected_layout}"
    )


def subfolders(folder: Path) -> list[str]:
    """Returns the names of the folders in `folder`, sorted, without hidden ones.

    Raises:
        UserError: If the folder cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if _is_folder(entry) and not is_hidden(entry.name))
    except OSError as error:
        raise_unreadable(error)


def file_names(folder: Path) -> list[str]:
    """Returns the names of the files in `folder`, sorted, without hidden ones.

    Raises:
        UserError: If the folder cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(
                entry.name for entry in entries if not entry.name.startswith(".") and not _is_folder(entry)
            )
    except OSError as error:
        raise_unreadable(error)


def is_hidden(folder: str) -> bool:
    """Returns whether a folder is hidden, or written by a system or an archiver beside the user's own."""
    return folder.startswith(".") or folder in ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Returns whether an entry is a folder or a link to one; a link in a circle is neither.

    Raises:
        PermissionError: If the target of a link may not be looked at.
    """
    try:
        return entry.is_dir()
    except PermissionError:
        raise
    except OSError:
        return False


def raise_unreadable(error: OSError) -> NoReturn:
    """Raises a UserError for a folder that cannot be listed, whose videos would otherwise vanish silently."""
    why = error.strerror or reason(error)
    raise UserError(
        f"cannot list the folder {printable(error.filename)}: {why}. Make it readable for this user "
        "(chmod -R u+rX), or move it out of the data set"
    ) from error


def find_videos(folder: Path) -> list[str]:
    """Returns all videos below `folder`, sorted. Hidden files and folders are skipped."""
    return list_videos(folder)[0]


def list_videos(folder: Path) -> tuple[list[str], Counter[str]]:
    """Returns all videos below `folder`, sorted, and the number of other files per file extension.

    Hidden files count only if they seem to be videos.
    """
    videos, others = [], Counter[str]()
    for parent, _, files in walk(folder):
        for name in files:
            if IS_VIDEO.fullmatch(name):
                videos.append(os.path.join(parent, name))
            elif not name.startswith("."):
                others[ending_of(name)] += 1
            elif IS_VIDEO.fullmatch(name.lstrip("._")):
                others[f"hidden {ending_of(name)}"] += 1
    return sorted(videos), others


def ending_of(name: str) -> str:
    """Returns the file extension in lower case, with its dot."""
    return os.path.splitext(name)[1].lower()


def shown_endings(counts: Counter[str]) -> str:
    """Returns the counts of file extensions for a message, the most frequent first."""
    most_first = sorted((-n, ending) for ending, n in counts.items())
    return shorten_list(f"{-n:,} {ending or 'without an extension'}" for n, ending in most_first)


def picture_folders(folder: Path) -> list[str]:
    """Returns the folders below `folder` that contain pictures and no other folders, sorted."""
    return sorted(
        parent
        for parent, folders, files in walk(folder)
        if parent != str(folder) and not folders and any(map(is_picture, files))
    )


def walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walks a folder like `os.walk`, following links, but skips hidden folders and links to a parent folder.

    Raises:
        UserError: If a folder cannot be read.
    """
    for parent, folders, files in os.walk(str(folder), onerror=raise_unreadable, followlinks=True):
        folders[:] = [name for name in folders if not is_hidden(name) and not _leads_back(parent, name)]
        yield parent, folders, files


def _leads_back(parent: str, name: str) -> bool:
    """Returns whether a folder is a link to one of its own parents."""
    path = os.path.join(parent, name)
    return os.path.islink(path) and Path(parent).resolve().is_relative_to(Path(path).resolve())


def below(root: StrPath, path: str) -> str:
    """Returns the path relative to root with forward slashes, or the path itself if it is not below root."""
    return path.removeprefix(os.path.join(root, "")).replace(os.sep, "/")


def unquote(text: str) -> str:
    """Removes CSV quotes from a cell."""
    return text[1:-1].replace('""', '"') if text.startswith('"') else text


def raise_listed(
    headline: str, problems: Sequence[str], advice: str, kind: type[UserError] = UserError
) -> NoReturn:
    """Raises a UserError that lists the first problems, one per line, and counts the rest."""
    more = [f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
    shown = [shorten(printable(problem), LONGEST) for problem in problems[:SHOWN]]
    raise kind("\n  ".join([f"{printable(headline)} ({len(problems)}):", *shown, *more]) + f"\n{advice}")
