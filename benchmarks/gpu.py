"""Run the rows of docs/gpu.md, most valuable first, within a time budget. scripts/gpu.sh starts this script.

Each row runs in a separate process with a time limit, so that a hang or crash affects only that row. The result is
printed and written as soon as the row is measured. Rows that are ok in the results are not measured again.
Rows that failed run again, after all others.
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
LEAST_S = 5.0  # With less time left, no further process is started.


@dataclass(frozen=True)
class Result:
    """The result of a row.

    Attributes:
        row: Name of the row.
        status: "ok", "failed", "time-out", or "cut" if the budget ended the row.
        seconds: Run time of the process in seconds.
        date: Date of the measurement.
        command: Command that measured the row.
        machine: Device and versions; see `about`.
        result: Result that the process wrote. For a check, it holds the numbers of tests.
        said: First failure, or the last line that the process printed.
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
    """Return the device and the versions. A separate process asks CUDA, as this takes GPU memory."""
    words = [sys.executable, str(ROOT / "benchmarks/gpu_about.py"), *(["--toy"] if toy else [])]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"torch failed to report its device:\n{done.stderr}")
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
    if code is None:  # A partial compilation cache would break the next row.
        shutil.rmtree(cache, ignore_errors=True)
    seconds = time.monotonic() - start_s
    status = "ok" if code == 0 else "failed"
    if code is None:
        status = "time-out" if limit_s >= row.limit_s else "cut"
        said = f"stopped after {limit_s:.0f} s; last: {said}"
    result: dict[str, Any] = {}
    if written["report"].exists():
        result, failure = tests(written["report"])
        said = failure or said
    elif written["json"].exists():
        result, said = json.loads(written["json"].read_text(encoding="utf-8")), "" if code == 0 else said
    # The command from the list of rows contains no paths of this machine.
    command = shlex.join(["python", *(word for word in row.command if not word.startswith("--gpu-report"))])
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    return Result(row.name, status, round(seconds, 1), date, command, machine, result, clean(said, out))


def run(words: list[str], limit_s: float, settings: dict[str, str]) -> tuple[int | None, str]:
    """Run a command and return its exit code (None after the time limit) and the last line that it printed."""
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
        start_new_session=True,  # The process group can then be killed together with its workers.
    )
    try:
        text, code = process.communicate(timeout=limit_s)[0], process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        text, code = process.communicate()[0], None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return code, lines[-1] if lines else ""


def tests(report: Path) -> tuple[dict[str, Any], str]:
    """Return the numbers of passed, failed and skipped tests with the reasons, and the first failure."""
    over = [json.loads(line) for line in report.read_text(encoding="utf-8").splitlines()]
    counts = {name: sum(test["outcome"] == name for test in over) for name in ("passed", "failed", "skipped")}
    reasons = sorted({test["why"] for test in over if test["outcome"] == "skipped"})
    failures = [f"{test['test']}: {test['why']}" for test in over if test["outcome"] == "failed"]
    return {**counts, "reasons": reasons}, next(iter(failures), "")


def clean(text: str, out: Path) -> str:
    """Put text on one line and remove the folders of this machine."""
    for folder in (str(out), str(ROOT), str(Path.home()), sys.prefix):
        text = text.replace(f"{folder}/", "")
    return " ".join(text.split())[:400]


RESULTS = "results.jsonl"


def read(file: Path) -> list[Result]:
    if not file.exists():
        return []
    return [Result(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines() if line]


def publish(docs: Path, found: list[Result]) -> None:
    """Merge results into `docs`/gpu.jsonl, keeping the newest per row and machine, and render gpu.md."""
    docs.mkdir(parents=True, exist_ok=True)
    kept = {result.key: result for result in (*read(docs / "gpu.jsonl"), *found)}
    lines = [json.dumps(asdict(result)) for result in kept.values()]
    (docs / "gpu.jsonl").write_text("\n".join(lines) + "\n" * bool(lines), encoding="utf-8")
    (docs / "gpu.md").write_text(render([asdict(result) for result in kept.values()]), encoding="utf-8")


def measure_all(rows: list[Row], out: Path, docs: Path, machine: dict[str, str], end_s: float) -> list[Result]:
    """Measure the rows that are not ok in the results, new rows first, until the time runs out."""
    out.mkdir(parents=True, exist_ok=True)
    earlier = {result.key: result for result in read(out / RESULTS)}
    known = {row: earlier.get(Result(row.name, "", 0, "", "", machine).key) for row in rows}
    results = []
    for row in sorted(rows, key=lambda row: getattr(known[row], "status", "") in ("failed", "time-out")):
        before = known[row]
        if before and before.status == "ok":
            print(f"{row.name}: already in the results", flush=True)
            results.append(before)
            continue
        left_s = end_s - time.monotonic()
        if left_s < LEAST_S:
            print(f"{row.name}: not measured, as the time budget is used up", flush=True)
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
    parser.add_argument(
        "what", nargs="?", choices=tuple(BUDGETS_S), default="all", help="rows to run; page: only render"
    )
    parser.add_argument(
        "--budget",
        type=float,
        help="time budget for all rows in seconds (default: check 240, speed 300, all 540)",
    )
    parser.add_argument("--started", type=float, help="Unix time at which the budget began")
    parser.add_argument("--out", type=Path, default=ROOT / "gpu-results", help="folder for the results")
    parser.add_argument(
        "--docs", type=Path, help="folder for gpu.md and gpu.jsonl (default: docs/, or --out with --toy)"
    )
    parser.add_argument("--toy", action="store_true", help="run toy models on the CPU")
    parser.add_argument("--only", default="", help="comma-separated names of the rows to run")
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
        sys.exit("no GPU found, so nothing is measured (--toy runs all rows on the CPU with toy models)")
    results = measure_all(rows, out, docs, machine, begun_s + budget_s)
    bad = [result.row for result in results if result.status != "ok"]
    missing = len(rows) - len(results)
    failed = f" ({', '.join(bad)})" if bad else ""
    print(f"rows: {len(results) - len(bad)} ok, {len(bad)} not ok{failed}, {missing} not measured")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
