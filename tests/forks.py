"""Runs many command lines of train.py, eval.py and `vivit`, each in a process of its own, which is forked.

The parent imports torch and Lightning once, so a command costs one second instead of six.

    python forks.py < CASES > RESULTS     one JSON list of words per line; the first one is the program
"""

import json
import os
import runpy
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_S = 120
PARALLEL = 2


def run(words: list[str], folder: Path) -> NoReturn:
    """Becomes a command in an empty folder, whose output goes to two files beside the folder."""
    signal.alarm(TIMEOUT_S)
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{folder}.{name}", os.O_WRONLY | os.O_CREAT), stream)
    os.chdir(folder)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    program, *sys.argv[1:] = words
    code: Any = 0
    try:
        if program == "vivit":
            from vivit_train.tools.cli import main

            main()
        else:
            sys.argv[0] = str(ROOT / program)
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as error:
        code = error.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    if not isinstance(code, int):  # As the interpreter does with sys.exit("text").
        sys.stderr.write(f"{code}\n")
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    import vivit_train.run
    import vivit_train.tools.bench.loader
    import vivit_train.tools.cli
    import vivit_train.tools.doctor.run
    import vivit_train.tools.prepare
    import vivit_train.tools.sweep  # noqa: F401

    top, running = Path(tempfile.mkdtemp()), dict[int, tuple[list[str], Path]]()

    def collect() -> None:
        pid, status = os.wait()
        words, folder = running.pop(pid)
        out, err = (Path(f"{folder}.{name}").read_text() for name in ("out", "err"))
        found = {"words": words, "code": os.waitstatus_to_exitcode(status), "stdout": out, "stderr": err}
        sys.stdout.write(json.dumps(found) + "\n")

    for number, line in enumerate(sys.stdin.read().splitlines()):
        if len(running) == PARALLEL:
            collect()
        folder = top / str(number)
        folder.mkdir()
        pid = os.fork()
        if not pid:
            run(json.loads(line), folder)
        running[pid] = (json.loads(line), folder)
    while running:
        collect()


if __name__ == "__main__":
    main()
