"""A lock that lets only one process at a time write to a run folder.

Hydra imports this module at startup, so it must not import anything heavy.
"""

import errno
import logging
import os
import socket
import time
from pathlib import Path

from vivit_train.utils.errors import UserError
from vivit_train.utils.files import check_folder

log = logging.getLogger(__name__)

try:
    import fcntl
except ImportError:  # Windows has no fcntl, so nothing is locked there.
    fcntl = None  # type: ignore[assignment]
NAME = ".lock"
# The folders within a run's folder that a run writes to.
WRITTEN = ("", ".hydra", "checkpoints", "nonfinite", "tensorboard", "wandb")
LOCKED = (errno.EACCES, errno.EAGAIN)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)


def open_locked(file: str) -> int:
    """Returns the descriptor of a file that this process has locked. Creates the file if it does not exist.

    Raises:
        OSError: Another process has locked the file, or the file system has no locks.
    """
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.exists(file) and os.path.samestat(os.fstat(descriptor), os.stat(file)):
                return descriptor
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)  # Its last holder, a refused start, has removed it.


def shown_path(folder: str | Path) -> str:
    """Returns the path of a folder for messages, relative to the working directory if it is below it."""
    path, here = os.path.realpath(folder), os.path.join(os.getcwd(), "")
    return path.removeprefix(here)


class FolderLock:
    """A lock on a folder until it is released or this process ends, however it ends.

    This is a POSIX record lock. The kernel releases it when the process ends, it works over NFS, and forked data
    loader workers, which may outlive a killed run by seconds, do not inherit it.

    Args:
        folder: The folder. It is created if it does not exist.

    Raises:
        UserError: Another process has locked the folder, or a link, pipe or device in it is in the way.
    """

    def __init__(self, folder: str | Path) -> None:
        self.file = os.path.join(os.path.realpath(folder), NAME)
        self.descriptor: int | None = None
        self.before: bytes | None = None  # what an earlier process wrote to the file; None if there was none
        os.makedirs(os.path.dirname(self.file), exist_ok=True)
        check_folder(os.path.dirname(self.file), WRITTEN, "choose another folder with hydra.run.dir=DIR")
        if fcntl is None:
            return
        name = shown_path(folder)
        is_new = not os.path.exists(self.file)
        try:
            self.descriptor = open_locked(self.file)
        except OSError as error:
            if error.errno in NO_LOCKS:
                log.warning(
                    f"{name}: this file system does not support locks; make sure that no other run writes there"
                )
                return
            if error.errno not in LOCKED:
                raise
            holder = Path(self.file).read_bytes()[:200].decode(errors="replace").strip()
            raise UserError(
                f"{name} is in use by another run ({holder or 'which has just started'}): wait for it to end, "
                "or choose another folder with hydra.run.dir=DIR (for a sweep: hydra.sweep.dir=DIR)"
            ) from error
        self.before = None if is_new else os.pread(self.descriptor, 4096, 0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        self.write(f"process {os.getpid()} on {socket.gethostname()} since {since}\n".encode())

    def write(self, content: bytes) -> None:
        """Replaces the content of the file, which names the process for the messages of others."""
        if self.descriptor is not None:
            os.ftruncate(self.descriptor, 0)
            os.pwrite(self.descriptor, content, 0)

    def release(self, *, restore: bool) -> None:
        """Releases the lock.

        Args:
            restore: Whether the file is to be as it was before.
        """
        if self.descriptor is None:
            return
        if restore and self.before is None:
            os.unlink(self.file)
        elif restore:
            self.write(self.before or b"")
        os.close(self.descriptor)
        self.descriptor = None
