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
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)
# The open descriptors by folder. Closing any descriptor of a lock file would release its lock.
_held: dict[str, int] = {}


def lock_folder(folder: str | Path) -> None:
    """Locks a folder until this process ends, however it ends. Creates the folder if it does not exist.

    This is a POSIX record lock. The kernel releases it when the process ends, it works over NFS, and forked data
    loader workers, which may outlive a killed run by seconds, do not inherit it. The process that holds the lock
    may call this function again.

    Raises:
        UserError: Another process has locked the folder, or a link, pipe or device in it is in the way.
    """
    folder = os.path.realpath(folder)
    if folder in _held:
        return
    os.makedirs(folder, exist_ok=True)
    check_folder(folder, WRITTEN, "choose another folder with hydra.run.dir=DIR")
    if fcntl is None:
        return
    file = os.open(os.path.join(folder, NAME), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(file, 200, 0).decode(errors="replace").strip()
        os.close(file)
        if error.errno in NO_LOCKS:
            log.warning(
                f"{folder}: this file system does not support locks; make sure that no other run writes there"
            )
            return
        raise UserError(
            f"{folder} is in use by another run ({holder or 'which has just started'}): wait for it to end, or "
            "choose another folder with hydra.run.dir=DIR (for a sweep: hydra.sweep.dir=DIR)"
        ) from error
    _held[folder] = file
    os.ftruncate(file, 0)
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()} since {since}\n".encode(), 0)
