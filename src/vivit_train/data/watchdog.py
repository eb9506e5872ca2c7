"""Shared records of what each loader process is reading, which outlive the process and explain its death."""

import ctypes
import faulthandler
import multiprocessing
import os
import re
import signal
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from ctypes import Array
from dataclasses import replace
from types import FrameType
from typing import Any

import torch
from torch.utils.data import get_worker_info

from vivit_train.utils.errors import UserError, VideoError

LESS_MEMORY = "lower data.num_workers or micro_batch_size, or give the job more memory"
LEAVE_OUT = "leave it out of the data set, with any others that `vivit doctor` finds"
NO_SHARED_MEMORY = (
    "the shared memory (/dev/shm) through which loader processes pass clips is full: "
    "lower data.num_workers or micro_batch_size, or enlarge it (docker run --ipc=host, or --shm-size=16g)"
)


class WorkerStatus(ctypes.Structure):
    """A record in shared memory of the video that a loader process is reading.

    Attributes:
        pid: The id of the process.
        path: The path of the video, in the encoding of the file system; b"" between two videos.
        since_s: The time at which the process opened the video, in seconds of the monotonic clock.
        ends: Whether the main process is ending, so that SIGTERM ends this process.
    """

    pid: int
    path: bytes
    since_s: float
    ends: bool
    _fields_ = (
        ("pid", ctypes.c_int64),
        ("path", ctypes.c_char * 4096),
        ("since_s", ctypes.c_double),
        ("ends", ctypes.c_bool),
    )

    def on_sigterm(self, number: int, frame: FrameType | None) -> None:
        """Ends this loader process if the main process is ending.

        A terminal or a scheduler signals every process of a run, but the main process has to finish its step
        first, however long that takes. When Python exits, it sends SIGTERM to each child and waits for it.
        """
        if self.ends:
            os._exit(0)

    @contextmanager
    def on(self, path: str) -> Iterator[None]:
        """Records `path` as the video being read inside this context."""
        self.pid, self.path, self.since_s = os.getpid(), os.fsencode(path)[:4095], time.monotonic()
        try:
            yield
        finally:
            self.path = b""


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Exits the process with a traceback on stderr if the context takes longer than `seconds`; 0 means no limit.

    A timer in C does this, because a decoder that hangs may block signal handlers and all Python threads.
    """
    if not seconds:
        yield
        return
    faulthandler.dump_traceback_later(seconds, exit=True, file=2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


class LoaderDiedError(UserError):
    """A loader process that died or did not answer.

    Attributes:
        videos: The videos that it was reading; empty if it is not known.
        why: What happened, without advice.
    """

    def __init__(self, text: str, videos: Sequence[str] = (), why: str = "") -> None:
        super().__init__(text)
        self.videos, self.why = videos, why


def killed_by(pid: int) -> str:
    """Returns which signal killed a child process, in torch's words, or "" if none did or it was reaped."""
    try:
        end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) if pid else None
    except ChildProcessError:
        return ""
    killed = end is not None and end.si_code in (os.CLD_KILLED, os.CLD_DUMPED)
    return f" killed by signal: {signal.strsignal(end.si_status)}. " if killed and end else ""


def explain(error: Exception, statuses: Sequence[WorkerStatus], timeout_s: float) -> LoaderDiedError | None:
    """Explains an error of a DataLoader: which video it was, what happened and what to do.

    Args:
        error: The error that the DataLoader raised.
        statuses: The records of all loader processes.
        timeout_s: The time limit for reading one video, in seconds.

    Returns:
        The error to raise, or None if no loader process has died.
    """
    said = f"{error.__cause__} {error}"  # together they name the process and the signal
    if re.search(r"</torch_.*No space left on device", said):
        return LoaderDiedError(NO_SHARED_MEMORY)
    lists = re.findall(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)", said)
    dead = {int(pid) for pids in lists for pid in pids.split(",")}
    if isinstance(error, EOFError | OSError) and any(
        "multiprocessing" in frame.filename for frame in traceback.extract_tb(error.__traceback__)
    ):  # the process died while it was passing a batch to the main process
        time.sleep(1)  # the system needs a moment to report the death
        said += "".join(killed_by(status.pid) for status in statuses)  # before active_children() reaps them
        alive = {0, *(child.pid for child in multiprocessing.active_children())}
        dead = {status.pid for status in statuses} - alive
    if not dead:
        return None
    signal = match[1] if (match := re.search(r"killed by signal: ([^.]+)", said)) else ""
    held = [status for status in statuses if status.pid in dead and status.path]
    late = [status for status in held if time.monotonic() - status.since_s >= timeout_s > 0]
    if late and not signal:
        why, path = f"the decoder has not returned after {timeout_s:g} s", os.fsdecode(late[0].path)
        advice = f"{LEAVE_OUT}, or raise data.timeout_s if the disk or network is slow"
        return LoaderDiedError(f"{VideoError(path, why)} (data.timeout_s): {advice}", [path], why)
    if signal == "Bus error" and not held:
        return LoaderDiedError(NO_SHARED_MEMORY)
    if signal not in ("Killed", ""):
        advice = LEAVE_OUT if held else "data.num_workers=0 may show why"
    else:
        advice = f"if the job ran out of memory, {LESS_MEMORY}"
        advice += f"; if it is this video every time, {LEAVE_OUT}" if held else ""
    videos = [os.fsdecode(status.path) for status in held]
    activity = f"reading {' and '.join(videos)}" if held else "between two videos"
    pids = ", ".join(map(str, sorted({status.pid for status in held} or dead)))
    why = f"its decoder's process died ({signal or 'cause unknown'})"
    text = f"loader process {pids} died {activity} ({signal or 'cause unknown'}): {advice}"
    return LoaderDiedError(text, videos, why)


def end_workers(statuses: Iterable[WorkerStatus]) -> None:
    """Lets SIGTERM end these loader processes; call it when the main process ends."""
    for status in statuses:
        status.ends = True


def start_worker(statuses: Array[WorkerStatus], worker: int) -> None:
    """Sets up a loader process: its threads, its signal handlers and its status record.

    It ends when the main process says so (see `end_workers`) or is gone, which torch checks every few seconds.
    """
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():  # With a fork server, its id is not that of getppid().
        os._exit(1)  # The parent was killed during startup, and torch would mistake init for the parent.
    torch.set_num_threads(1)  # the workers provide the parallelism
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, statuses[worker].on_sigterm)
    dataset: Any = get_worker_info().dataset  # type: ignore[union-attr] # this process's copy
    dataset.video_reader = replace(dataset.video_reader, status=statuses[worker])
