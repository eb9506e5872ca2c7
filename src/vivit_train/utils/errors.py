"""Errors that a user can act on. All other errors keep their traceback, because they are bugs."""

import errno
import inspect
import logging
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from vivit_train.utils.logs import add_terminal_handler
from vivit_train.utils.text import printable, printable_lines

log = logging.getLogger(__name__)
IN_THE_WAY = "a file is where a folder is needed: choose another path"
# What the system says of a path, and what is said instead.
SYSTEM = {errno.EEXIST: IN_THE_WAY, errno.ENOTDIR: IN_THE_WAY, errno.EISDIR: "this is a folder, not a file"}


class UserError(Exception):
    """An error that the user can fix.

    The text says what is wrong, where, and what to do. It is safe to print on a terminal.
    """

    def __str__(self) -> str:
        return printable_lines(super().__str__())


class VideoError(UserError):
    """A video that cannot be read.

    Attributes:
        path: The path of the file.
        reason: The error message of the decoder, on one line.
        kind: "missing", "empty", "truncated", "no video", "damaged" (some frames cannot be decoded), or
            "unreadable" (any other reason).
    """

    def __init__(self, path: str, reason: str, *, kind: str = "unreadable") -> None:
        super().__init__(path, reason)  # Both are in args, so that pickling works.
        self.path = str(path)
        self.reason = printable(" ".join(str(reason).split()))
        self.kind = kind

    def __str__(self) -> str:
        return f"cannot read video {printable(self.path)}: {self.reason}"


TRY_AGAIN = 75  # This is EX_TEMPFAIL of sysexits.h; schedulers requeue a job that exits with it.
CTRL_C = 130  # The exit code of a program that SIGINT ends.
NOTHING_DONE = 2  # Exit code for wrong words of a command whose exit code 1 stands for unreadable videos.


class StoppedError(UserError):
    """A run that was stopped by a signal after its state was saved.

    Attributes:
        code: The exit code: `CTRL_C` after Ctrl-C, `TRY_AGAIN` after any other signal.
    """

    def __init__(self, received: signal.Signals, text: str) -> None:
        super().__init__(text)
        self.code = CTRL_C if received == signal.SIGINT else TRY_AGAIN


def interrupted(text: str) -> StoppedError:
    """Returns the error of a command that Ctrl-C ends; the text says what is kept, and how to go on."""
    return StoppedError(signal.SIGINT, f"interrupted: {text}")


def end_on_signals() -> None:
    """Makes a scheduler's signals end this process with the exit code `TRY_AGAIN`, and Ctrl-C with `CTRL_C`.

    This applies during startup and evaluation, when there is no state to save. `LastCheckpoint` replaces these
    handlers during training.
    """

    def end(number: int, frame: FrameType | None) -> None:
        os.write(2, f"\n{signal.Signals(number).name}: stopping now\n".encode())
        sys.exit(CTRL_C if number == signal.SIGINT else TRY_AGAIN)

    for name in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
        signal.signal(name, end)


class OutOfMemoryError(UserError):
    """A micro-batch that does not fit into memory.

    Attributes:
        micro_batch_size: Half of the micro-batch, to retry with. None if it cannot be halved, or if the run has
            already made too much progress to restart.
    """

    def __init__(self, text: str, micro_batch_size: int | None) -> None:
        super().__init__(text)
        self.micro_batch_size = micro_batch_size


def reason(error: Exception) -> str:
    """Returns why something failed: the first line of a library's message, or the name of its type without one."""
    if isinstance(error, OSError) and error.strerror:
        return system_reason(error)
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"there is no module {error.name}"
    if isinstance(error, AttributeError) and inspect.ismodule(error.obj) and error.name:
        return f"the module {error.obj.__name__} has no {error.name}"
    # FFmpeg's errors have their text apart from their number; some errors have no text.
    text = getattr(error, "strerror", None) or str(error).partition("\n")[0]
    return printable(text) or type(error).__name__


def system_reason(error: OSError) -> str:
    """Returns why the system refuses a path, without the path."""
    return SYSTEM.get(error.errno or 0, printable(error.strerror or type(error).__name__))


def exit_with_message(main: Callable[[], object]) -> None:
    """Runs a main function; errors that a user can fix become one message and exit code 1, with no traceback."""
    add_terminal_handler()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then re-raises errors instead of printing a traceback.
    try:
        main()
    except KeyboardInterrupt:
        end_by_ctrl_c()
    except Exception as error:
        end_with_message(error)
        raise


def end_by_ctrl_c() -> NoReturn:
    """Ends the process as after Ctrl-C, and says so."""
    log.error("stopped by Ctrl-C")
    sys.exit(CTRL_C)


def end_with_message(error: Exception) -> None:
    """Ends the process with a message if a user can fix the error; returns if it is a bug."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, StoppedError):
        log.error(error)
        sys.exit(error.code)
    if isinstance(error, UserError | HydraException | OmegaConfBaseException | OSError):
        cause = f"\n{error.__cause__}" if isinstance(error.__cause__, OmegaConfBaseException) else ""
        text = str(error)
        if isinstance(error, OSError) and error.filename is not None and error.strerror:
            text = f"{error.filename}: {system_reason(error)}"
        log.error(f"error: {text}{cause}")
        sys.exit(1)
