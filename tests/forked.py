"""Runs Python programs as processes of their own that have torch and Lightning imported already.

Importing them takes 5 s of CPU time, which is most of what a tiny run takes. A fork server imports them once per
test process and forks each program. `test_commands.py` and `test_wheel.py` start the interpreter itself.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["vivit_train.run", "matplotlib.pyplot"])
TESTS = str(Path(__file__).parent)


def run_python(
    *words: str, folder: Path, env: Mapping[str, str] = os.environ, timeout_s: float = 300
) -> "subprocess.CompletedProcess[str]":
    """Does what `python WORDS` does in a folder: WORDS begin with a file or with -m and a module.

    Raises:
        subprocess.TimeoutExpired: The program runs for longer than `timeout_s`. It is killed.
    """
    with TemporaryDirectory() as temporary:
        outputs = [Path(temporary, name) for name in ("stdout", "stderr")]
        process = SERVER.Process(target=_run, args=(words, folder, dict(env), outputs))
        process.start()
        process.join(timeout_s)
        code = process.exitcode
        if code is None:
            process.kill()
            raise subprocess.TimeoutExpired(words, timeout_s)
        stdout, stderr = (file.read_text(encoding="utf-8") for file in outputs)
        return subprocess.CompletedProcess(words, code, stdout, stderr)


def _run(words: Sequence[str], folder: Path, env: dict[str, str], outputs: list[Path]) -> None:
    for number, (name, file) in enumerate(zip(("stdout", "stderr"), outputs, strict=True), start=1):
        with file.open("wb") as opened:
            os.dup2(opened.fileno(), number)
        stream = open(number, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115 it stays open
        setattr(sys, name, stream)
    multiprocessing.set_start_method(None, force=True)  # Else the program's own children need a fork server, too.
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    is_module = words[0] == "-m"
    first = str(folder) if is_module else str(Path(words[0]).parent)
    added = [first, *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
    sys.path[:] = [*added, *(path for path in sys.path if not path.startswith(TESTS))]
    sys.argv = list(words[is_module:])
    sys.orig_argv = [sys.executable, *words]
    if is_module:
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(words[0], run_name="__main__")
