"""The groups of clips that stay in one fold of a cross-validation, such as the clips of one person."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vivit_train.data.annotations.csv_file import read_column
from vivit_train.data.annotations.table import ClipTable, LabelSets
from vivit_train.training.folds import sources
from vivit_train.utils.errors import UserError
from vivit_train.utils.files import read_records
from vivit_train.utils.text import plural, shorten_list

COLUMN = "column:"


def class_ids(table: ClipTable) -> NDArray[np.int64]:
    """Returns the class id of each clip."""
    assert not isinstance(table.labels, LabelSets)
    return table.labels[:, 0]


def groups_of(how: str, table: ClipTable, names: Sequence[str]) -> list[str]:
    """Returns the group of each clip.

    Args:
        how: "source" (what the names of files and folders tell), "none" (each clip is a group), "column:NAME" (a
            column of the tables of data=csv), a file with the header path,group, or a regular expression whose
            first group, searched in the path, is the group.
        table: The clips.
        names: The class names.

    Raises:
        UserError: The file or the column lacks a clip, or the expression does not match.
    """
    paths = table.paths.tolist()
    if how == "none":
        return paths
    if how == "source":
        return sources(table.ids.tolist(), class_ids(table), names)
    if how.startswith(COLUMN):
        found = from_column(how.removeprefix(COLUMN), table)
    elif Path(how).is_file():
        found = from_file(how, table)
    else:
        try:
            pattern = re.compile(how)
        except re.error as error:
            raise UserError(f"--group {how}: neither a file nor a regular expression that is complete") from error
        if not pattern.groups:
            raise UserError(f"--group {how}: the expression needs a group, such as 'person(\\d+)'")
        found = [match and match[1] for match in map(pattern.search, paths)]
    if lacking := [path for path, name in zip(paths, found, strict=True) if not name]:
        raise UserError(f"--group {how}: gives {plural(len(lacking), 'clip')} no group: {shorten_list(lacking)}")
    return list(map(str, found))


def from_column(name: str, table: ClipTable) -> list[str | None]:
    """Returns the cell of each clip in a column of the tables that list them.

    Raises:
        UserError: There is no such column, or it does not tell one group for each clip.
    """
    if not table.lists:
        raise UserError(
            f"--group {COLUMN}{name}: the clips come from no table: data=csv reads one, with the header "
            f"path,label,{name}"
        )
    known: dict[str, str] = {}
    for root, file in table.lists:
        for path, cell in read_column(root, file, name).items():
            if known.setdefault(path, cell) != cell:
                raise UserError(f"{file}: the {name} of {path} is {cell}, but {known[path]} in another list")
    return [known.get(path) for path in table.paths.tolist()]


def from_file(file: str, table: ClipTable) -> list[str | None]:
    """Returns the group of each clip in a file with the header path,group; None for a clip that it lacks.

    Raises:
        UserError: The file cannot be read, or has no such header.
    """
    rows = read_records(Path(file))
    if not rows or not {"path", "group"} <= rows[0].keys():
        raise UserError(f"--group {file}: the file needs the header path,group")
    known = {row["path"]: row["group"] for row in rows}
    return [
        known.get(path, known.get(id_)) for path, id_ in zip(table.paths.tolist(), table.ids.tolist(), strict=True)
    ]
