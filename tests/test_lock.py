"""One process at a time writes into a run's folder; a killed one leaves no lock."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import ROOT, TINY, Happened

from vivit_train.utils.errors import UserError
from vivit_train.utils.lock import FolderLock

SECTION = "Several processes"
HOLD = (
    "import sys, time; from vivit_train.utils import lock; it = lock.FolderLock(sys.argv[1]); print(1, flush=True)"
)
FORK = "import os; child = os.fork(); print(child, flush=True) if child else None"


def holder(folder: Path, *statements: str) -> "subprocess.Popen[str]":
    """A process that has locked a folder."""
    code = (
        "; ".join([HOLD, "time.sleep(60)"]) if not statements else "\n".join([HOLD, *statements, "time.sleep(60)"])
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "1\n"
    return process


@pytest.mark.fault(SECTION)
@pytest.mark.skipif(sys.platform == "win32", reason="no POSIX locks")
def test_a_folder_in_use_is_refused_and_a_killed_process_leaves_no_lock(
    tmp_path: Path, happened: Happened
) -> None:
    """Not even while a process that it forked still lives, as a loader process does for some seconds."""
    process = holder(tmp_path / "run", FORK)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        with pytest.raises(UserError, match=rf"is in use by another run \(process {process.pid} on ") as error:
            FolderLock(tmp_path / "run")
        process.kill()
        process.wait()
        os.kill(child, 0)  # lives on
        FolderLock(tmp_path / "run").release(restore=False)
    finally:
        os.kill(child, signal.SIGKILL)
    happened("A second run in a folder in which one runs", error.value)


@pytest.mark.fault(SECTION)
@pytest.mark.slow
@pytest.mark.parametrize("script", ["train.py", "eval.py", "train.py -m"])
def test_a_second_command_in_a_folder_in_use_writes_nothing_there(
    script: str, tmp_path: Path, happened: Happened
) -> None:
    folder = tmp_path / "run"
    process = holder(folder)
    (folder / "metrics.csv").write_text("of the first run")
    before = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}
    name, *flags = script.split()
    words = [f"hydra.sweep.dir={folder}", "seed=1,2"] if flags else [f"hydra.run.dir={folder}"]
    words += ["ckpt_path=none"] if name == "eval.py" else TINY
    began = time.monotonic()
    result = subprocess.run(
        [sys.executable, str(ROOT / name), *flags, *words], cwd=tmp_path, capture_output=True, text=True
    )
    process.kill()
    process.wait()
    assert result.returncode == 1
    assert time.monotonic() - began < 60
    assert "is in use by another run" in result.stderr
    assert "Traceback" not in result.stderr
    after = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}
    assert after == before
    happened(f"`{script}` in a folder in which another run is", result.stderr)
