"""Escapes names of classes, files, and clips for the place that they are written to.

Hydra imports this module at startup, so it must not import anything heavy.
"""

import hashlib
import math
import re
import unicodedata
from collections.abc import Iterable

# These characters control a terminal or are invisible: control characters, bidirectional marks, line separators,
# zero-width characters, and lone surrogates, which cannot be encoded. Joiners stay, because emoji and some scripts
# need them.
_CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
_CONTROL_WITHIN_LINES = re.compile(_CONTROL.pattern.replace("\x00-\x1f", "\x00-\x09\x0b-\x1f"))
# Spreadsheets skip leading blanks and accept full-width forms; a leading apostrophe makes the cell plain text.
_FORMULA = re.compile(r"[\t\r]|\s*[=+\-@\uff1d\uff0b\uff0d\uff20]")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # Windows reserves these names.
SHORT = {"\n": r"\n", "\t": r"\t", "\r": r"\r"}
SHOWN = 5  # A message names this many items and counts the rest.
LONGEST = 500  # A message shows this many characters of an item.
FILE_NAME = 40  # Characters have up to four bytes, and file systems allow names of 255 bytes.


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    wide = f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    return SHORT.get(match[0], wide)


def printable(text: object) -> str:
    """Returns text on one line, with control and invisible characters escaped as in Python string literals."""
    return _CONTROL.sub(_escape, str(text))


def nfc(text: str) -> str:
    """Returns text in Unicode's composed form, in which names are compared: macOS writes é as e and an accent."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def loose_name(name: str) -> str:
    """Returns a name without what people overlook: case, blanks and Unicode's forms of one letter."""
    return "".join(nfc(name).casefold().split())


def plural(count: int, noun: str) -> str:
    """Returns a count with its noun: "1 device", "1,200 devices", "2 classes"."""
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{ending}"


def percent(share: float, digits: int = 0) -> str:
    """Returns a share as a percentage, "38 %", or "-" if it is undefined.

    Only none is 0 % and only all is 100 %: what would round to them has a further digit, "99.6 %", or a bound,
    "> 99.9 %".
    """
    if math.isnan(share):
        return "-"
    for places in (digits, digits + 1):
        text = f"{100 * share:.{places}f}"
        if share in (0, 1) or 0 < float(text) < 100:
            return f"{text} %"
    least = 10.0 ** -(digits + 1)
    return f"> {100 - least:.{digits + 1}f} %" if share > 0.5 else f"< {least:.{digits + 1}f} %"


def signed(number: float, digits: int = 0) -> str:
    """Returns a number with its sign; what rounds to zero has none."""
    text = f"{number:+.{digits}f}"
    return text if float(text) else text[1:]


def printable_lines(text: object) -> str:
    """Returns text with control and invisible characters escaped, but keeps its line breaks."""
    return _CONTROL_WITHIN_LINES.sub(_escape, str(text))


def csv_cell(text: object) -> str:
    """Returns `printable` text for a cell of a CSV file, so that no spreadsheet interprets it as a formula."""
    return f"'{printable(text)}" if _FORMULA.match(str(text)) else printable(text)


def shorten(text: str, length: int) -> str:
    """Returns text with its middle replaced by an ellipsis if it is longer than `length`."""
    if len(text) <= length:
        return text
    return f"{text[: length - length // 2 - 1]}…{text[len(text) - length // 2 :]}"


def shorten_list(things: Iterable[object], shown: int = SHOWN) -> str:
    """Returns the first items for a message, and the total count if there are more."""
    items = [shorten(printable(thing), LONGEST) for thing in things]
    more = f", ... ({len(items)} in all)" if len(items) > shown else ""
    return ", ".join(items[:shown]) + more


def file_stem(name: str) -> str:
    """Returns a name for use in a file name: unchanged if safe on all systems, else sanitized and with a hash."""
    kept = re.sub(r"[^\w.-]", "_", name)[:FILE_NAME].strip(".")
    if kept == name and name and not _RESERVED.fullmatch(name):
        return name
    return f"{kept}_{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:8]}"


def quoted(text: str) -> str:
    """Quotes a value for Hydra's grammar, in which spaces, commas and non-ASCII letters need quotes."""
    return "'" + re.sub(r"(\\*)('|$)", lambda end: end[1] * 2 + end[2].replace("'", r"\'"), text) + "'"
