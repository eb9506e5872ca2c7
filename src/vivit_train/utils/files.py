"""Replaces a file only when the new one is complete."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Yields a path beside `file` to write to, which replaces `file` when the context ends without an error.

    After an error, or a Ctrl-C, the path is deleted and `file` is as it was. A process that is killed leaves
    `.NAME.PID.part`.
    """
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(file)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
