"""Runs the rows of docs/gpu.md, most valuable first, within a budget; scripts/gpu.sh starts it.

Each row has a process of its own and a limit of its own: one that hangs or crashes costs that row. It is printed
and written as soon as it is measured, and one that is in the results already is not measured again.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gpu_page import render, short
from gpu_rows import Row, chosen

ROOT = Path(__file__).resolve().parents[1]
BUDGETS_S = {"check": 240, "speed": 300, "all": 540, "page": 0}
LEAST_S = 5.0  # less is not worth starting a process for
MAY_FAIL_AGAIN = "cut"  # by the budget: such a row is measured once more


@dataclass(frozen=True)
class Result:
    """What came of a row.

    Attributes:
        status: "ok", "failed", "time-out", or "cut" by the budget.
        machine: see `about`.
        result: what the row's process wrote; of a check numbers of tests.
        said: the first failure, or a process's last line.
    """

    row: str
    status: str
    seconds: float
    date: str
    command: str
    machine: dict[str, str]
    result: dict[str, Any] = field(default_factory=dict)
    said: str = ""

    @property
    def key(self) -> tuple[str, ...]:
        return (self.row, *(self.machine[name] for name in ("device", "python", "torch")))


def about(toy: bool) -> dict[str, str]:
    """The device and the versions, found out by a process of its own: CUDA takes memory where it is asked."""
    words = [sys.executable, str(ROOT / "benchmarks/gpu_about.py"), *(["--toy"] if toy else [])]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"torch cannot be asked for its device:\n{done.stderr}")
    found: dict[str, str] = json.loads(done.stdout.strip().splitlines()[-1])
    for name in ("torch", "torchvision", "timm", "lightning", "transformers", "av"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    return found | {"python": platform.python_version()}


def measure(row: Row, out: Path, machine: dict[str, str], limit_s: float) -> Result:
    work = out / "work"
    work.mkdir(parents=True, exist_ok=True)
    written = {"json": work / "row.json", "report": work / "row.jsonl"}
    for file in written.values():
        file.unlink(missing_ok=True)
    places = {**written, "work": work, "results": out / RESULTS}
    words = [re.sub(r"{(\w+)}", lambda place: str(places[place[1]]), word) for word in row.command]
    if row.kind == "check":
        words += ["-p", "no:cacheprovider", f"--basetemp={work / 'pytest'}"]
    elif "benchmarks/gpu_speed.py" in words and machine["toy"]:
        words.append("--toy")
    start_s = time.monotonic()
    cache = work / "inductor"
    code, said = run([sys.executable, *words], limit_s, {"TORCHINDUCTOR_CACHE_DIR": str(cache)})
    if code is None:  # what it was compiling is half written, and would break the next row
        shutil.rmtree(cache, ignore_errors=True)
    seconds = time.monotonic() - start_s
    status = "ok" if code == 0 else "failed"
    if code is None:
        status = "time-out" if limit_s >= row.limit_s else MAY_FAIL_AGAIN
        said = f"ended after {limit_s:.0f} s; last: {said}"
    result: dict[str, Any] = {}
    if written["report"].exists():
        result, failure = tests(written["report"])
        said = failure or said
    elif written["json"].exists():
        result, said = json.loads(written["json"].read_text(encoding="utf-8")), "" if code == 0 else said
    # as it was written in the list: no path of this machine
    command = shlex.join(["python", *(word for word in row.command if not word.startswith("--gpu-report"))])
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    return Result(row.name, status, round(seconds, 1), date, command, machine, result, clean(said, out))


def run(words: list[str], limit_s: float, settings: dict[str, str]) -> tuple[int | None, str]:
    """The exit code, None where the time was over, and the last line that was said."""
    environment = os.environ | settings | {"PYTHONPATH": f"{ROOT / 'src'}:{os.environ.get('PYTHONPATH', '')}"}
    log = subprocess.PIPE
    process = subprocess.Popen(
        words,
        cwd=ROOT,
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        start_new_session=True,  # so that its loader processes end with it
    )
    try:
        text, code = process.communicate(timeout=limit_s)[0], process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        text, code = process.communicate()[0], None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return code, lines[-1] if lines else ""


def tests(report: Path) -> tuple[dict[str, Any], str]:
    """How many passed, failed and were skipped, and why; and the first failure."""
    over = [json.loads(line) for line in report.read_text(encoding="utf-8").splitlines()]
    counts = {name: sum(test["outcome"] == name for test in over) for name in ("passed", "failed", "skipped")}
    reasons = sorted({test["why"] for test in over if test["outcome"] == "skipped"})
    failures = [f"{test['test']}: {test['why']}" for test in over if test["outcome"] == "failed"]
    return {**counts, "reasons": reasons}, next(iter(failures), "")


def clean(text: str, out: Path) -> str:
    """In one line, and without the folders of this machine."""
    for folder in (str(out), str(ROOT), str(Path.home()), sys.prefix):
        text = text.replace(f"{folder}/", "")
    return " ".join(text.split())[:400]


RESULTS = "results.jsonl"


def read(file: Path) -> list[Result]:
    if not file.exists():
        return []
    return [Result(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines() if line]


def publish(docs: Path, found: list[Result]) -> None:
    """Merges results into `docs`/gpu.jsonl, the newest of each row and machine, and renders gpu.md."""
    docs.mkdir(parents=True, exist_ok=True)
    kept = {result.key: result for result in (*read(docs / "gpu.jsonl"), *found)}
    lines = [json.dumps(asdict(result)) for result in kept.values()]
    (docs / "gpu.jsonl").write_text("\n".join(lines) + "\n" * bool(lines), encoding="utf-8")
    (docs / "gpu.md").write_text(render([asdict(result) for result in kept.values()]), encoding="utf-8")


def measure_all(rows: list[Row], out: Path, docs: Path, machine: dict[str, str], end_s: float) -> list[Result]:
    """Those that are not in the results yet, until the time is over."""
    out.mkdir(parents=True, exist_ok=True)
    done = {result.key: result for result in read(out / RESULTS) if result.status != MAY_FAIL_AGAIN}
    results = []
    for row in rows:
        key = Result(row.name, "", 0, "", "", machine).key
        if key in done:
            print(f"{row.name}: in the results already", flush=True)
            results.append(done[key])
            continue
        left_s = end_s - time.monotonic()
        if left_s < LEAST_S:
            print(f"{row.name}: not measured, the budget is spent", flush=True)
            continue
        result = measure(row, out, machine, min(row.limit_s, left_s))
        results.append(result)
        with (out / RESULTS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(result)) + "\n")
        publish(docs, results)
        print(f"{row.name}: {result.status}, {result.seconds:.0f} s; {short(asdict(result))}", flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=tuple(BUDGETS_S), default="all", help="page: only render")
    parser.add_argument(
        "--budget", type=float, help="seconds for all rows together: 240 check, 300 speed, 540 all"
    )
    parser.add_argument("--started", type=float, help="seconds since 1970 at which the budget began")
    parser.add_argument("--out", type=Path, default=ROOT / "gpu-results")
    parser.add_argument(
        "--docs", type=Path, help="folder of gpu.md and gpu.jsonl; of toys that is --out, else docs/"
    )
    parser.add_argument("--toy", action="store_true", help="on the CPU, with models of toy size")
    parser.add_argument("--only", default="", help="names of rows, with commas between them")
    options = parser.parse_args()
    out: Path = options.out.resolve()
    docs: Path = options.docs or (out if options.toy else ROOT / "docs")
    if options.what == "page":
        publish(docs, read(out / RESULTS))
        return
    rows = chosen(options.what, options.toy, filter(None, options.only.split(",")))
    begun_s = time.monotonic() - (time.time() - options.started if options.started else 0)
    budget_s = BUDGETS_S[options.what] if options.budget is None else options.budget
    if options.toy:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    machine = about(options.toy)
    print(", ".join(f"{name} {value}" for name, value in machine.items() if value), flush=True)
    if not (options.toy or machine["cuda"]):
        publish(docs, read(out / RESULTS))
        sys.exit("no GPU here: nothing is measured (--toy runs all of it on the CPU, at toy size)")
    results = measure_all(rows, out, docs, machine, begun_s + budget_s)
    bad = [result.row for result in results if result.status != "ok"]
    missing = len(rows) - len(results)
    print(f"{len(results) - len(bad)} rows ok, {len(bad)} not ({', '.join(bad)}), {missing} not measured")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
