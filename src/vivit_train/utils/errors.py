"""Errors a person can act on. Everything else keeps its traceback, because it is a bug."""

import logging
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from vivit_train.utils.text import printable, printable_lines

log = logging.getLogger(__name__)


class UserError(Exception):
    """Something the user can mend. Its text says what is wrong, where, and what to do; a terminal may have it."""

    def __str__(self) -> str:
        return printable_lines(super().__str__())


class VideoError(UserError):
    """A video that cannot be read.

    Attributes:
        path: the file.
        reason: what the decoder said, in one line.
        kind: "missing", "empty", "truncated", "no video", "damaged" (frames of it cannot be decoded) or
            "unreadable" (all else).
    """

    def __init__(self, path: str, reason: str, *, kind: str = "unreadable") -> None:
        super().__init__(path, reason)  # both in args, so that it survives pickling between processes
        self.path = str(path)
        self.reason = printable(" ".join(str(reason).split()))
        self.kind = kind

    def __str__(self) -> str:
        return f"cannot read video {printable(self.path)}: {self.reason}"


TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h, on which schedulers requeue


class StoppedError(UserError):
    """A run that ended as a signal told it to, with its state saved.

    Attributes:
        code: to exit with: 130 after Ctrl-C, TRY_AGAIN after others.
    """

    def __init__(self, received: signal.Signals, text: str) -> None:
        super().__init__(text)
        self.code = 130 if received == signal.SIGINT else TRY_AGAIN


def end_on_signals() -> None:
    """Has a scheduler's signals end this process with the code to try again: while it starts, and while it scores
    the result, there is nothing to save. In training LastCheckpoint takes the signals over."""

    def end(number: int, frame: FrameType | None) -> None:
        os.write(2, f"\n{signal.Signals(number).name}: the run ends here\n".encode())
        sys.exit(TRY_AGAIN)

    for name in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(name, end)


class OutOfMemoryError(UserError):
    """A micro-batch that does not fit into memory.

    Attributes:
        micro_batch: half of it, to be tried in its place; None: there is none, or it is too late.
    """

    def __init__(self, text: str, micro_batch: int | None) -> None:
        super().__init__(text)
        self.micro_batch = micro_batch


def reason(error: Exception) -> str:
    """What a library's error says, in one line."""
    return printable(str(error).partition("\n")[0]) or type(error).__name__  # an EOFError says nothing


def exit_with_message(main: Callable[[], object]) -> None:
    """Runs a hydra main; what a user can mend ends in one message and exit code 1, without a traceback."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    os.environ["HYDRA_FULL_ERROR"] = "1"  # hydra hands errors on instead of printing tracebacks of its own
    try:
        main()
    except StoppedError as stopped:
        log.error(stopped)
        sys.exit(stopped.code)
    except (UserError, HydraException, OmegaConfBaseException, OSError) as error:
        cause = f"\n{error.__cause__}" if isinstance(error.__cause__, OmegaConfBaseException) else ""
        log.error(f"error: {error}{cause}")
        sys.exit(1)
