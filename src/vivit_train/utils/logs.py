"""Logging to the terminal and to the log file of a run.

Modules log to `logging.getLogger(__name__)`. Info messages come from rank 0 only; warnings and errors come from
any rank. Names in messages are made printable. Hydra imports this module at startup, so it must not import
anything heavy.
"""

import logging
import os
import sys

from vivit_train.utils.rank import is_first_rank
from vivit_train.utils.text import printable_lines

STYLES = {logging.WARNING: "yellow", logging.ERROR: "bold red", logging.CRITICAL: "bold red"}


class FirstRankFilter(logging.Filter):
    """A filter that drops info messages on all ranks except rank 0."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno > logging.INFO or is_first_rank()


class OtherLoggersFilter(logging.Filter):
    """Leaves the package's messages to `TerminalHandler`; Hydra's console would repeat them."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.name.startswith("vivit_train")


class PrintableFormatter(logging.Formatter):
    """A formatter that prevents names from files from controlling the terminal or forging lines."""

    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))


class TerminalHandler(logging.Handler):
    """A handler that writes messages to stdout and errors to stderr, in color if they are terminals."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(PrintableFormatter("%(message)s"))
        self.addFilter(FirstRankFilter())

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stderr if record.levelno >= logging.ERROR else sys.stdout
        try:
            text = self.format(record)
            if stream.isatty():
                from rich.console import Console

                Console(file=stream).print(text, style=STYLES.get(record.levelno), markup=False, soft_wrap=True)
            else:
                stream.write(text + "\n")
                stream.flush()
        except BrokenPipeError:
            # The reader, such as `head`, is gone. The run goes on, and the exit must not flush into the pipe.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        except Exception:
            self.handleError(record)


def add_terminal_handler() -> None:
    """Makes the package's messages appear on the terminal, including in notebooks and scripts."""
    logger = logging.getLogger("vivit_train")
    if not any(isinstance(handler, TerminalHandler) for handler in logger.handlers):
        logger.addHandler(TerminalHandler())
        logger.setLevel(logging.INFO)
