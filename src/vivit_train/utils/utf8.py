"""Names of files are UTF-8, whatever the locale."""

import os
import sys
from io import TextIOWrapper


def in_utf_8() -> None:
    """Starts Python anew in its UTF-8 mode where the locale has names of files in another encoding; first thing in
    a script. What the terminal's encoding lacks is written as in Python's strings, and ends nothing."""
    if sys.getfilesystemencoding() != "utf-8" and not sys.flags.utf8_mode:
        os.environ["PYTHONUTF8"] = "1"  # for the processes that this one starts
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
