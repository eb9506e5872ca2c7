"""Makes file names UTF-8, whatever the locale."""

import os
import sys
from io import TextIOWrapper


def in_utf_8() -> None:
    """Restarts Python in UTF-8 mode if the locale uses another encoding for file names.

    Call this first in a script. Characters that the terminal's encoding lacks are escaped as in Python string
    literals instead of raising an error.
    """
    if sys.getfilesystemencoding() != "utf-8" and not sys.flags.utf8_mode:
        os.environ["PYTHONUTF8"] = "1"  # Child processes inherit it.
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
