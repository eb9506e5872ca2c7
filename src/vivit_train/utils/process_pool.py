"""Child processes that work on files, so that a file that crashes or hangs its decoder costs only one child.

Children are started with "spawn", because decoders can hang in forked processes. Each child runs one job at a
time.
"""

import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from types import ModuleType
from typing import Any, Generic, NamedTuple, TypeVar

from vivit_train.utils.errors import VideoError, reason

RENEWED_AFTER = 1000  # A child is replaced after this many jobs, which frees memory that libraries have leaked.
J = TypeVar("J", bound=Hashable)
R = TypeVar("R")


class Failure(NamedTuple):
    """The outcome of a job that has no result.

    Attributes:
        kind: "crash" or "hang" if the child failed, the kind of the `VideoError` that the job raised, or
            "unreadable" for any other error.
        detail: A description on one line.
    """

    kind: str
    detail: str


def usable_cores() -> int:
    """Returns the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_isolated(
    work: Callable[[J], R], jobs: Mapping[J, float], workers: int
) -> Generator[tuple[J, R | Failure], None, None]:
    """Yields each job with its result, in the order in which the jobs finish.

    The children live no longer than the generator: wrap it in `contextlib.closing` to end them immediately on
    Ctrl-C. They do not outlive this process either.

    Args:
        work: The function to run. A child imports it by name, as well as the classes of jobs and results, so that
            none of them may be defined in a script.
        jobs: The jobs, each with its time limit in seconds.
        workers: The number of children that run at the same time.

    Raises:
        RuntimeError: A child exited before its first job; stderr has the reason.
    """
    todo, left = deque(jobs.items()), len(jobs)
    children: list[_Child[J, R]] = []
    try:
        for _ in range(min(workers, left)):
            children.append(_Child(work))
        while left:
            soonest_s = min(child.until_s for child in children) - time.monotonic()
            pipes = wait([child.pipe for child in children], max(0, soonest_s) if soonest_s < math.inf else None)
            now_s = time.monotonic()
            for child in [child for child in children if child.pipe in pipes or child.until_s <= now_s]:
                job, result = child.job, child.result() if child.pipe in pipes else child.hang()
                if todo and child.jobs < RENEWED_AFTER and not child.is_lost:
                    child.give(*todo.popleft())
                else:
                    child.end()
                    children.remove(child)
                    if todo:
                        children.append(_Child(work))
                if job is not None:
                    left -= 1
                    yield job, result
    finally:
        for child in children:
            child.end()


class _Child(Generic[J, R]):
    """A process that works on one job at a time. `job` is None until the process reports that it is ready."""

    def __init__(self, work: Callable[[J], R]) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, work), daemon=True)
        with _without_main_module(), _ctrl_c_held_back():
            self.process.start()
        other.close()
        self.job: J | None = None
        self.jobs, self.is_lost = 0, False
        self.limit_s = self.until_s = math.inf  # Startup time does not count against a job.

    def give(self, job: J, limit_s: float) -> None:
        self.job, self.limit_s, self.until_s = job, limit_s, time.monotonic() + limit_s
        self.jobs += 1
        with suppress(OSError):  # If the child has died, `result` reports it.
            self.pipe.send(job)

    def result(self) -> Any:
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            self.is_lost = True
            self.process.join()
        code = self.process.exitcode or 0
        how = f"its process died ({signal.Signals(-code).name if code < 0 else f'exit code {code}'})"
        if self.job is None:
            raise RuntimeError(f"{how} before its first job")
        return Failure("crash", how)

    def hang(self) -> Failure:
        self.is_lost = True
        return Failure("hang", f"no answer within {self.limit_s:.0f} s")

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.process.close()
        self.pipe.close()


@contextmanager
def _without_main_module() -> Iterator[None]:
    """Starts children that do not run the caller's script again.

    "spawn" would run it, so a script of three lines would start itself anew in each child unless it had the guard
    `if __name__ == "__main__"`.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def _ctrl_c_held_back() -> Iterator[None]:
    """Starts children with SIGINT blocked, so that only their parent receives Ctrl-C and ends them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # Starting it later would unblock SIGINT.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(pipe: Connection, work: Callable[[Any], Any]) -> None:
    """Runs jobs from the pipe until the parent is gone."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, BrokenPipeError):  # These mean that the parent is gone.
        pipe.send(None)
        while True:
            pipe.send(_result(work, pipe.recv()))


def _result(work: Callable[[Any], Any], job: Any) -> Any:
    try:
        return work(job)
    except VideoError as error:
        return Failure(error.kind, error.reason)
    except Exception as error:
        return Failure("unreadable", f"{type(error).__name__}: {reason(error)}")


def _end_with_parent() -> None:
    """Ends this process when its parent ends. A thread can do this even if a decoder hangs and blocks signals."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
