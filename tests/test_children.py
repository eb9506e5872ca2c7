"""`run_isolated` with real processes: crashes, hangs, errors, Ctrl-C, and a parent that is killed."""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from vivit_train.utils import process_pool
from vivit_train.utils.errors import VideoError
from vivit_train.utils.process_pool import Failure, run_isolated


def work(job: str) -> object:
    """What the job's name says, and the process that did it."""
    match job.split(":")[0]:
        case "crash":
            os._exit(3)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            time.sleep(60)
        case "bug":
            raise ValueError("told to\nby its name")
        case "bad":
            raise VideoError(job, "half of it is missing", kind="truncated")
        case "large":
            return np.ones(1 << 20, np.uint8)
    return os.getpid()


def test_each_job_has_its_result_or_why_there_is_none() -> None:
    jobs = dict.fromkeys(("fine:0", "crash", "bug", "killed", "fine:1", "bad", "large"), 30.0)
    jobs |= {"hang": 0.5, "fine:2": 30.0, "fine:3": 30.0}
    results = list(run_isolated(work, jobs, workers=2))
    assert sorted(job for job, _ in results) == sorted(jobs)
    for job, result in results:
        expected = {
            "crash": Failure("crash", "its process died (exit code 3)"),
            "killed": Failure("crash", "its process died (SIGKILL)"),
            "hang": Failure("hang", "no answer within 0 s"),
            "bug": Failure("unreadable", "ValueError: told to"),
            "bad": Failure("truncated", "half of it is missing"),
        }
        if isinstance(result, np.ndarray):
            assert job.startswith("large")
            assert result.sum() == 1 << 20
        elif job.startswith("fine"):
            assert isinstance(result, int)
        else:
            assert result == expected[job.split(":")[0]]


def test_a_child_does_many_jobs_and_is_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_pool, "RENEWED_AFTER", 3)
    processes = [process for _, process in run_isolated(work, {f"fine:{i}": 30.0 for i in range(8)}, workers=1)]
    assert [processes.count(process) for process in dict.fromkeys(processes)] == [3, 3, 2]
    assert list(run_isolated(work, {}, workers=2)) == []


@pytest.mark.slow
def test_time_that_the_caller_takes_is_not_the_childs() -> None:
    for _, result in run_isolated(work, {f"fine:{i}": 0.5 for i in range(3)}, workers=2):
        time.sleep(0.7)
        assert isinstance(result, int)


def test_closed_it_leaves_no_children() -> None:
    with closing(run_isolated(work, {"fine": 30.0, "hang": 30.0, "hang:2": 30.0}, workers=2)) as results:
        (_, process) = next(results)
        assert isinstance(process, int)
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def _not_there(job: str) -> None:
    pass


def test_children_that_cannot_start_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_not_there, "__qualname__", "only_here")
    monkeypatch.setattr(sys.modules[__name__], "only_here", _not_there, raising=False)
    with pytest.raises(RuntimeError, match="before its first job"):
        list(run_isolated(_not_there, {"a": 30.0}, workers=1))


# It has no guard `if __name__ == "__main__"`: no child runs it again.
SCRIPT = """
from contextlib import closing
from vivit_train.utils.process_pool import run_isolated
from test_children import work

with closing(run_isolated(work, {"fine": 30, "hang": 300, "hang:2": 300}, workers=2)) as results:
    for job, result in results:
        print(result, flush=True)
"""


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_children_end_with_their_parent(how: signal.Signals, tmp_path: Path) -> None:
    """Ctrl-C reaches all processes of a terminal: one traceback, the parent's, and none of the children's."""
    (tmp_path / "script.py").write_text(SCRIPT)
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "script.py"],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    assert parent.stdout.readline()
    if how == signal.SIGINT:
        os.killpg(parent.pid, how)
    else:
        parent.kill()
    start_s = time.monotonic()
    _, errors = parent.communicate(timeout=30)  # until the children, too, have closed their ends
    assert time.monotonic() - start_s < 10
    assert errors.count("Traceback") == (how == signal.SIGINT)
