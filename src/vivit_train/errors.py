"""Errors a person can act on. Everything else keeps its traceback, because it is a bug."""


class UserError(Exception):
    """Something the user can mend. Its text says what is wrong, where, and what to do."""


class VideoError(UserError):
    """A video that cannot be read.

    Attributes:
        path: the file.
        reason: what the decoder said, in one line.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)  # both in args, so that it survives pickling between processes
        self.path = str(path)
        self.reason = " ".join(str(reason).split())

    def __str__(self) -> str:
        return f"cannot read video {self.path}: {self.reason}"
