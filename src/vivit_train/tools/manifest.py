"""The tables of `vivit prepare`: manifest.csv lists the re-encoded videos, and failed.csv the unreadable ones."""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from vivit_train.utils.files import read_table, replacing
from vivit_train.utils.text import csv_cell

ABOUT_SOURCE = ("source", "bytes_before", "source_mtime_ns", "settings")
# `bytes_after` is the last column: a row that a killed run cut short does not match the size of its file.
FIELDS = (*ABOUT_SOURCE, "target", "frames", "seconds", "sha256", "bytes_after")
MAX_BYTES = 1 << 30  # The size of a manifest of three million videos.
MANIFEST = re.compile(r"manifest(-\d+of\d+)?\.csv")
OWN_TABLE = re.compile(rf"{MANIFEST.pattern}|failed(-\d+of\d+)?\.csv")
Row = dict[str, str]


def read_rows(table: Path) -> list[Row]:
    """Read the complete rows of a manifest. The last row of a killed run may be cut off."""
    header, *rows = read_table(table, MAX_BYTES, errors="surrogateescape") or [[]]
    if set(header) != set(FIELDS):
        return []
    return [dict(zip(header, row, strict=True)) for row in rows if len(row) == len(header)]


def write_rows(table: Path, fields: Sequence[str], rows: Iterable[Row]) -> None:
    """Replace a table. Until the new one is complete, the old one stays."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fields)
    writer.writeheader()
    writer.writerows(rows)
    for left in table.parent.glob(f".{table.name}.*.part"):  # Only a killed run can have left it.
        left.unlink(missing_ok=True)
    with replacing(table) as part:
        part.write_text(text.getvalue(), encoding="utf-8", errors="surrogateescape", newline="")


def write_failures(table: Path, failed: Sequence[Row]) -> None:
    """Write the table of the videos that failed, or delete it if there are none."""
    table.unlink(missing_ok=True)
    if failed:
        # No program reads this table, so its cells can be escaped for spreadsheets.
        cells = [{key: csv_cell(text) for key, text in row.items()} for row in failed]
        write_rows(table, ("source", "reason"), sorted(cells, key=lambda row: row["source"]))


def is_prepared(video: str) -> bool:
    """Return whether `vivit prepare` made a video: a folder above it holds a manifest."""
    for folder in Path(video).absolute().parents:
        for table in filter(lambda path: MANIFEST.fullmatch(path.name), folder.glob("manifest*.csv")):
            if table.is_file():  # Opening a pipe would block.
                with table.open("rb") as file:
                    if file.readline(1000).decode(errors="replace").rstrip("\r\n") == ",".join(FIELDS):
                        return True
    return False
