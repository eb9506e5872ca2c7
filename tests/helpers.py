"""What tests import from each other."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from forked import run_python

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
Happened = Callable[[str, object], None]  # see conftest.happened

# a model and clips so small that an epoch takes a second
TINY = [
    "model.size=Ti",
    "model.dim=32",
    "model.depth=1",
    "model.heads=2",
    "model.tubelet=[2,16,16]",
    "data.frames=4",
    "data.stride=2",
    "data.fps=null",  # recipes set it instead of the stride
    "data.crop=32",
    "data.short_side=36",
    "data.num_workers=0",
    "global_batch_size=8",
    "trainer.max_epochs=1",
    "trainer.accelerator=cpu",
    "eval.report=false",  # it takes a second; test_report.py looks at it
]
# the same, without what a probe does not read
TINY_PROBE = [word for word in TINY if not word.startswith(("trainer.max_epochs", "eval."))]


def run_script(script: str, *words: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Runs train.py or eval.py in a folder, on a terminal of 120 columns."""
    return run_python(str(ROOT / script), *words, folder=folder, env=os.environ | {"COLUMNS": "120"})


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted name and the value of each key that a user may set."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        elif not key.startswith("_"):
            yield f"{prefix}{key}", value
