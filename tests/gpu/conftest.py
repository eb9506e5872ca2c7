"""Checks that `scripts/gpu.sh check` runs on a GPU; where there is none, on the CPU, at toy size.

What has no meaning on a CPU skips, and says so.
"""

import json
import os
from pathlib import Path

import pytest
import torch

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic products; read when CUDA starts


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--gpu-report", type=Path, help="a JSON line for each test, as soon as it is over")


def pytest_configure(config: pytest.Config) -> None:
    if file := config.getoption("--gpu-report"):
        config.pluginmanager.register(Report(file))


class Report:
    """What came of each test, though the process may be ended at any moment."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        why = ""
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            why = str(crash.message if crash else report.longrepr)
        elif report.skipped and isinstance(report.longrepr, tuple):
            why = report.longrepr[2].removeprefix("Skipped: ")
        name = report.nodeid.rpartition("::")[2]
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"test": name, "outcome": report.outcome, "why": why}) + "\n")


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def on_device(device: torch.device) -> list[str]:
    """Settings of a run on it; exact ones, as on GPUs bf16 is the default."""
    accelerator = "gpu" if device.type == "cuda" else "cpu"
    return [f"trainer.accelerator={accelerator}", "trainer.devices=1", "trainer.precision=32-true"]
