"""What each loader process is reading, noted where the process's death does not take it along."""

import ctypes
import faulthandler
import multiprocessing
import os
import re
import signal
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ctypes import Array
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import get_worker_info

from vivit_train.utils.errors import VideoError

LESS_MEMORY = "lower data.num_workers or data.micro_batch, or give the job more memory"
LEAVE_OUT = "leave it out of the data set, with any others that `vivit doctor` finds"
NO_SHARED_MEMORY = (
    "there is no room left in the shared memory (/dev/shm) through which loader processes hand over their clips: "
    "lower data.num_workers or data.micro_batch, or enlarge it (docker run --ipc=host, or --shm-size=16g)"
)


class WorkerStatus(ctypes.Structure):
    """The video that a loader process has open.

    Attributes:
        pid: the process.
        path: the video, as the system spells it; b"" between two videos.
        since_s: when it was opened, by the monotonic clock.
    """

    pid: int
    path: bytes
    since_s: float
    _fields_ = (("pid", ctypes.c_int64), ("path", ctypes.c_char * 4096), ("since_s", ctypes.c_double))

    @contextmanager
    def on(self, path: str) -> Iterator[None]:
        """While the video is open."""
        self.pid, self.path, self.since_s = os.getpid(), os.fsencode(path)[:4095], time.monotonic()
        try:
            yield
        finally:
            self.path = b""


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Ends this process where something takes longer, and shows on stderr where it hung; 0 for no limit.

    A decoder that hangs lets no signal through, and may let no Python thread run either.
    """
    if not seconds:
        yield
        return
    faulthandler.dump_traceback_later(seconds, exit=True, file=2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def explain(error: Exception, statuses: Sequence[WorkerStatus], timeout_s: float) -> str | None:
    """What an error of a DataLoader means for a person: which video, what happened, what to do.

    Args:
        statuses: of all loader processes.
        timeout_s: the time limit of a video.

    Returns:
        None where no loader process was lost.
    """
    said = f"{error.__cause__} {error}"  # how a process ended, and which
    if re.search(r"</torch_.*No space left on device", said):
        return NO_SHARED_MEMORY
    lists = re.findall(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)", said)
    dead = {int(pid) for pids in lists for pid in pids.split(",")}
    if isinstance(error, EOFError | OSError) and any(
        "multiprocessing" in frame.filename for frame in traceback.extract_tb(error.__traceback__)
    ):  # the process died over a batch that it was handing over
        time.sleep(1)  # until it is seen to be dead
        alive = {0, *(child.pid for child in multiprocessing.active_children())}
        dead = {status.pid for status in statuses} - alive
    if not dead:
        return None
    signal = match[1] if (match := re.search(r"killed by signal: ([^.]+)", said)) else ""
    held = [status for status in statuses if status.pid in dead and status.path]
    late = [status for status in held if time.monotonic() - status.since_s >= timeout_s > 0]
    if late and not signal:
        hangs = VideoError(os.fsdecode(late[0].path), f"its decoder has not come back after {timeout_s:g} s")
        return f"{hangs} (data.timeout_s): {LEAVE_OUT}, or raise data.timeout_s where the disk or network is slow"
    if signal == "Bus error" and not held:
        return NO_SHARED_MEMORY
    if signal not in ("Killed", ""):
        advice = LEAVE_OUT if held else "data.num_workers=0 may show why"
    else:
        advice = f"where memory ran out, {LESS_MEMORY}"
        advice += f"; where it is this video every time, {LEAVE_OUT}" if held else ""
    video_reader = " and ".join(os.fsdecode(status.path) for status in held) or "no video"
    pids = ", ".join(map(str, sorted({status.pid for status in held} or dead)))
    return f"loader process {pids} died reading {video_reader} ({signal or 'it is not known why'}): {advice}"


LAST_S = 20  # for which a loader process outlives a signal to end


def start_worker(statuses: Array[WorkerStatus], worker: int) -> None:
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid != os.getppid():  # killed meanwhile: torch would take init for the parent
        os._exit(1)
    torch.set_num_threads(1)  # the workers are the parallelism
    # a terminal or a scheduler signals every process of a run: the main one is to finish its step first
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(LAST_S))
    dataset: Any = get_worker_info().dataset  # type: ignore[union-attr] # this process's own
    dataset.video_reader = replace(dataset.video_reader, status=statuses[worker])
