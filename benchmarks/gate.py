"""Check that training gives the same losses as before a change: python benchmarks/gate.py [REF]

The script trains the first 20 steps of the demo with the working tree and with a commit (by default HEAD) on this
machine, and compares the losses bit for bit.
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STEPS = 20


def losses(tree: Path, out: Path) -> list[str]:
    """Train with the code in `tree` and return the losses as strings, as in metrics.csv."""
    words = [f"trainer.max_steps={STEPS}", "trainer.log_every_n_steps=1", "trainer.limit_val_batches=0"]
    words += ["data.num_workers=2", f"data.root={ROOT / 'data/demo'}", f"hydra.run.dir={out}"]
    command = [sys.executable, str(tree / "train.py"), *words]
    subprocess.run(command, cwd=tree, env=os.environ | {"PYTHONPATH": str(tree / "src")}, check=True)
    with (out / "metrics.csv").open() as file:
        return [row["train/loss_step"] for row in csv.DictReader(file) if row["train/loss_step"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ref", nargs="?", default="HEAD", help="the commit to compare with")
    ref = parser.parse_args().ref
    with tempfile.TemporaryDirectory() as temporary:
        before, out = Path(temporary) / "before", Path(temporary)
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(before), ref], cwd=ROOT, check=True)
        try:
            then, now = losses(before, out / "run-before"), losses(ROOT, out / "run-now")
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(before)], cwd=ROOT, check=True)
    different = [step for step, pair in enumerate(zip(then, now, strict=True)) if pair[0] != pair[1]]
    if different:
        step = different[0]
        sys.exit(f"gate: the losses differ from step {step} on: {then[step]} at {ref}, {now[step]} now")
    print(f"gate: all {len(now)} losses match {ref} bit for bit; the last is {now[-1]}")


if __name__ == "__main__":
    main()
