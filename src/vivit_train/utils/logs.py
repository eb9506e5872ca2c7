"""Logging: what a person reads on the terminal, and what stays in a run's log file.

Modules log to `logging.getLogger(__name__)`. Of several processes the first one alone informs; warnings and errors
come from any. Names in messages are made printable. Imported by hydra at start-up: nothing heavy here.
"""

import logging
import sys

from vivit_train.utils.rank import is_first_rank
from vivit_train.utils.text import printable_lines

STYLES = {logging.WARNING: "yellow", logging.ERROR: "bold red", logging.CRITICAL: "bold red"}


class FirstRankFilter(logging.Filter):
    """Keeps information of all processes but the first to themselves."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno > logging.INFO or is_first_rank()


class OtherLoggersFilter(logging.Filter):
    """Leaves the package's messages to `TerminalHandler`; Hydra's console would repeat them."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.name.startswith("vivit_train")


class PrintableFormatter(logging.Formatter):
    """Names that come from files cannot act on the terminal, nor forge lines."""

    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))


class TerminalHandler(logging.Handler):
    """Writes messages to stdout, errors to stderr; in color on a terminal, plain where they are piped."""

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
        except Exception:
            self.handleError(record)


def add_terminal_handler() -> None:
    """Lets the package's messages reach the terminal, in notebooks and scripts too."""
    logger = logging.getLogger("vivit_train")
    if not any(isinstance(handler, TerminalHandler) for handler in logger.handlers):
        logger.addHandler(TerminalHandler())
        logger.setLevel(logging.INFO)
