"""What every program of this package sets up first: UTF-8 file names, messages, threads that wait passively."""

import os
import sys
from io import TextIOWrapper

from vivit_train.utils.logs import add_terminal_handler


def prepare_process() -> None:
    """Sets up this process and its children. Call it first in a script, before torch is imported.

    Python restarts in UTF-8 mode if the locale uses another encoding for file names. Characters that the
    terminal's encoding lacks are escaped as in Python string literals instead of raising an error. The package's
    messages appear on the terminal.
    """
    if sys.getfilesystemencoding() != "utf-8" and not sys.flags.utf8_mode:
        os.environ["PYTHONUTF8"] = "1"  # Child processes inherit it.
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    add_terminal_handler()
    # Loader workers share the cores with torch's threads, and threads that spin while they wait block a core. On
    # two cores, spinning makes the demo 1.5 times slower, or 7 times slower next to another busy process. OpenMP
    # reads the variable once, when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
