"""Names of classes, files and clips are data: what they may do depends on where they go.

Imported by hydra at start-up: nothing heavy here.
"""

import hashlib
import re

# What a terminal obeys, or no eye can see: controls, the order of writing, separators of lines, what is invisible,
# and halves of characters, which no file can hold. Joiners stay, as emoji and scripts are written with them.
_CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
_CONTROL_WITHIN_LINES = re.compile(_CONTROL.pattern.replace("\x00-\x1f", "\x00-\x09\x0b-\x1f"))
# spreadsheets pass over blanks, and take the full-width forms for the same; an apostrophe in front ends that
_FORMULA = re.compile(r"[\t\r]|\s*[=+\-@\uff1d\uff0b\uff0d\uff20]")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # by Windows
SHORT = {"\n": r"\n", "\t": r"\t", "\r": r"\r"}
FILE_NAME = 40  # characters, of up to four bytes; file systems have room for 255


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    wide = f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    return SHORT.get(match[0], wide)


def printable(text: object) -> str:
    """In one line, for people: what would act on a terminal, or hide, is written as in Python's strings."""
    return _CONTROL.sub(_escape, str(text))


def plural(count: int, noun: str) -> str:
    """A count and its noun: "1 device", "1,200 devices"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def excerpt(text: object, longest: int = 500) -> str:
    """`printable`, and no longer than a message bears."""
    line = printable(text)
    return line if len(line) <= longest else f"{line[: longest - 3]}..."


def printable_lines(text: object) -> str:
    """A message of several lines, likewise."""
    return _CONTROL_WITHIN_LINES.sub(_escape, str(text))


def csv_cell(text: object) -> str:
    """A cell of text in a table for people: `printable`, and no spreadsheet takes it for a formula."""
    return f"'{printable(text)}" if _FORMULA.match(str(text)) else printable(text)


def shortened(text: str, length: int) -> str:
    """Without its middle, where it is longer."""
    if len(text) <= length:
        return text
    return f"{text[: length - length // 2 - 1]}…{text[len(text) - length // 2 :]}"


def file_stem(name: str) -> str:
    """A name as part of a file's: itself where that is safe on all systems, else what is left of it and a hash."""
    kept = re.sub(r"[^\w.-]", "_", name)[:FILE_NAME].strip(".")
    if kept == name and name and not _RESERVED.fullmatch(name):
        return name
    return f"{kept}_{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:8]}"
