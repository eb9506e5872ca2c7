"""What is to run on a GPU one day, as it is started there, at toy size on this CPU."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import gpu
import pytest
import torch
from gpu_page import render
from gpu_rows import Row, rows
from gpu_speed import compile_blocks
from helpers import ROOT

from vivit_train.models.vivit import ModelName, ViViT

FEW = "check/attention,speed/optimizer"


def script(*words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = [str(ROOT / "scripts/gpu.sh"), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def results(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def is_in_a_table(row: Row) -> bool:
    """Together with others."""
    return row.kind == "check" or row.command[1] == "model"


@pytest.mark.slow
def test_rows_are_measured_once_and_shown(tmp_path: Path) -> None:
    done = script("all", "--toy", "--out", str(tmp_path), "--only", FEW, "--budget", "200")
    assert done.returncode == 0, done.stdout + done.stderr
    check, optimizer = results(tmp_path)
    names = ("check/attention", "ok", "speed/optimizer", "ok")
    assert (check["row"], check["status"], optimizer["row"], optimizer["status"]) == names
    assert check["result"]["passed"] >= 16
    assert check["result"]["failed"] == 0
    assert all(row["fused"] > 0 and row["foreach"] > 0 for row in optimizer["result"]["rows"])
    page = (tmp_path / "gpu.md").read_text()
    assert "Not measured yet, as no GPU was available." in page
    assert page.count("| not measured |") == len([row for row in rows(toy=False) if is_in_a_table(row)])
    assert f"- {check['result']['reasons'][0]}" in page
    assert str(tmp_path) not in page


WRITES = "import sys; open(sys.argv[1], 'w').write('{\"ms\": 1.5}')"


def sleeping(limit_s: float) -> Row:
    """A row whose process has a child that holds on to its output."""
    child = "import subprocess, sys, time; print('begun', flush=True); subprocess.run(['sleep', '60'])"
    return Row("speed/sleeping", "sleeps", ("-c", child), limit_s)


MACHINE = {"device": "none", "toy": "yes", "python": "3", "torch": "2", "cuda": ""}
MACHINE |= dict.fromkeys(("torchvision", "timm", "lightning", "transformers"), "1")


@pytest.mark.parametrize(
    ("limit_s", "budget_s", "status"), [(1, 30, "time-out"), pytest.param(30, 5.5, "cut", marks=pytest.mark.slow)]
)
def test_a_row_that_hangs_costs_its_limit(limit_s: float, budget_s: float, status: str, tmp_path: Path) -> None:
    start_s = time.monotonic()
    measured = gpu.measure_all([sleeping(limit_s)], tmp_path, tmp_path, MACHINE, start_s + budget_s)
    assert time.monotonic() - start_s < min(limit_s, budget_s) + 3
    assert [result.status for result in measured] == [status]
    assert measured[0].said.endswith("last: begun")


@pytest.mark.parametrize("status", ["cut", "failed", "time-out"])
def test_a_row_that_is_not_ok_is_measured_again(tmp_path: Path, status: str) -> None:
    say = Row("speed/quick", "writes", ("-c", WRITES, "{json}"))
    cut = gpu.Result(say.name, status, 3.0, "2026-01-01", "", MACHINE)
    (tmp_path / gpu.RESULTS).write_text(json.dumps(asdict(cut)) + "\n")
    end_s = time.monotonic() + 30
    assert [r.status for r in gpu.measure_all([say], tmp_path, tmp_path, MACHINE, end_s)] == ["ok"]
    assert results(tmp_path)[-1]["result"] == {"ms": 1.5}
    assert len(gpu.measure_all([say], tmp_path, tmp_path, MACHINE, end_s)) == 1  # from the results
    assert len(results(tmp_path)) == 2
    other = replace(say, name="speed/other")
    assert gpu.measure_all([other], tmp_path, tmp_path, MACHINE, time.monotonic()) == []  # the budget is spent


def test_rows_that_failed_run_after_new_ones(tmp_path: Path) -> None:
    new = Row("speed/new", "writes", ("-c", WRITES, "{json}"))
    failed = replace(new, name="speed/failed")
    before = gpu.Result(failed.name, "failed", 3.0, "2026-01-01", "", MACHINE)
    (tmp_path / gpu.RESULTS).write_text(json.dumps(asdict(before)) + "\n")
    measured = gpu.measure_all([failed, new], tmp_path, tmp_path, MACHINE, time.monotonic() + 30)
    assert [result.row for result in measured] == [new.name, failed.name]


@pytest.mark.parametrize("model", ["vivit_fe", "vivit_st"])
def test_a_model_with_compiled_blocks_is_called_as_one_without(model: ModelName) -> None:
    net = ViViT.from_size(model, "Ti", num_classes=3, frames=4, image_size=32, depth=1, temporal_depth=1).eval()
    clip = torch.rand(1, *net.input_shape)
    expected = net(clip)
    compile_blocks(net)
    with torch.compiler.set_stance("force_eager"):  # compiling itself takes half a minute: the slow test's rows
        assert torch.equal(net(clip), expected)


def test_a_page_shows_what_a_gpu_measured() -> None:
    machine = MACHINE | {"device": "Card 9", "toy": "", "cuda": "13.0", "memory": "80 GB", "driver": "580"}
    batch = {"batch": 16, "clips_per_s": 123.4, "mfu": 0.5, "step_ms": 130.0, "peak_gb": 40.0}
    shares = {"attention": 0.2, "matrix products": 0.7, "rest": 0.1}
    speed = {"rows": [batch | {"batch": 8}, batch], "shares": shares, "first_step_s": 2.0}
    check = {"passed": 7, "failed": 1, "skipped": 0, "reasons": []}
    found = [
        gpu.Result("speed/fe-B-train", "ok", 9.0, "2026-01-02", "", machine, speed),
        gpu.Result("check/parity", "failed", 9.0, "2026-01-02", "", machine, check, "logits: 3e-1"),
    ]
    page = render([asdict(result) for result in found])
    assert "Measured on 2026-01-02: Card 9, 80 GB, CUDA 13.0, driver 580; Python 3, torch 2" in page
    assert "| vivit_fe B, train | 16 | 123 | 50% | 40 | 20% / 70% / 10% | 2.0 |" in page
    assert "| failed: logits: 3e-1 | 7, 1, 0 | 9 |" in page


@pytest.mark.slow
def test_all_rows_run_at_toy_size(tmp_path: Path) -> None:
    done = script("all", "--toy", "--out", str(tmp_path), "--budget", "3000")
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(result["status"] == "ok" for result in results(tmp_path))
