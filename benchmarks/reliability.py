"""Writes docs/reliability.md: every fault that the tests cause, and what came of it. make reliability"""

import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/reliability.md"
HEAD = """# What was tried, and what happened

Made by `make reliability`: it runs the tests that are marked `fault`, and each says here what it did and what came
of it. They cause the fault itself: signals to real processes, files cut short, full disks, decoders that crash.
A failing test is in bold. A test that cannot run on this machine says why.
"""


def plain(text: str) -> str:
    """Text of which Markdown makes neither links nor tags nor emphasis."""
    return re.sub(r"[\[\]<*|]", r"\\\g<0>", text)


def rows(report: Path) -> dict[str, set[tuple[str, str, str]]]:
    """By section: the fault, what happened, and the test."""
    found: dict[str, set[tuple[str, str, str]]] = defaultdict(set)
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        said = [(node.get("name", ""), node.get("value", "")) for node in case.iter("property")]
        section = next((value for name, value in said if name == "section"), "Others")
        test = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name', '')}"
        outcomes = [tuple(plain(value).split("\n")) for name, value in said if name == "happened"]
        for kind in ("failure", "error"):
            if case.find(kind) is not None:
                outcomes = [(test, "**The test fails.**")]
        if (skipped := case.find("skipped")) is not None:
            outcomes = [(test, f"Not tried: {plain(str(skipped.get('message')))}")]
        found[section] |= {(fault, outcome, test.partition("[")[0]) for fault, outcome in outcomes}
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "worksteal", "-m", "fault"]
        command += [f"--junitxml={report}", *sys.argv[1:]]
        code = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode
        found = rows(report)
    lines = [HEAD]
    for section, faults in sorted(found.items()):
        lines += [f"## {section}", "", "| fault | what happened | test |", "|---|---|---|"]
        lines += ["| " + " | ".join(row) + " |" for row in sorted(faults)]
        lines.append("")
    PAGE.write_text("\n".join(lines).rstrip() + "\n")
    print(f"written: {PAGE.relative_to(ROOT)}, {sum(map(len, found.values()))} faults")
    sys.exit(code)


if __name__ == "__main__":
    main()
