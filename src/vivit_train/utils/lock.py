"""One process at a time writes into a run's folder.

Imported by hydra at start-up: nothing heavy here.
"""

import errno
import logging
import os
import socket
import time
from pathlib import Path

from vivit_train.utils.errors import UserError

log = logging.getLogger(__name__)

try:
    import fcntl
except ImportError:  # Windows has none: there, nothing is locked
    fcntl = None  # type: ignore[assignment]
NAME = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)
_held: dict[str, int] = {}  # of this process, by folder: closing any descriptor of such a file would end its lock


def lock_folder(folder: str | Path) -> None:
    """Locks a folder until this process ends, however it ends; makes the folder where there is none.

    A POSIX record lock: the kernel drops it with the process, NFS knows it, and forked loader processes, which may
    outlive a killed run by seconds, do not inherit it. The process may lock a folder again.

    Raises:
        UserError: another process has locked it.
    """
    folder = os.path.realpath(folder)
    if fcntl is None or folder in _held:
        return
    os.makedirs(folder, exist_ok=True)
    file = os.open(os.path.join(folder, NAME), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(file, 200, 0).decode(errors="replace").strip()
        os.close(file)
        if error.errno in NO_LOCKS:
            log.warning(f"{folder}: this disk has no locks; make sure that no other run writes there")
            return
        raise UserError(
            f"{folder} is in use by another run ({holder or 'which has only started'}): wait for it, or give this "
            "one a folder of its own by hydra.run.dir=DIR (a sweep: hydra.sweep.dir=DIR)"
        ) from error
    _held[folder] = file
    os.ftruncate(file, 0)
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()} since {since}\n".encode(), 0)
