"""`vivit bench model` and `train`, and benchmarks/growth.py: numbers that make sense, however large they are."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import ROOT, TINY
from omegaconf import DictConfig
from typer.testing import CliRunner

from vivit_train.tools.bench.model import Cell, bench, measure_cell
from vivit_train.tools.bench.train import FORWARD, bench_train, table
from vivit_train.tools.cli import app
from vivit_train.training.profiling import bytes_kept, peak_bytes, shares

CPU = torch.device("cpu")
SMALL = [
    "model.dim=32",
    "model.depth=2",
    "model.heads=2",
    "model.tubelet=[2,16,16]",
    "data.frames=4",
    "data.crop=32",
]


def node(model: str, **kwargs: int) -> str:
    return json.dumps({"_target_": "vivit_train.models.vivit.ViViT", "model": model, **kwargs})


def test_memory_is_counted_to_the_byte() -> None:
    held = torch.zeros(1000)

    def step() -> None:
        one = torch.zeros(2000)
        two = one + 1
        del one
        three = two + 1
        del two, three

    # all but a few bytes, of numbers that torch wraps
    assert peak_bytes(step, [held, held[5:]], CPU) == pytest.approx(4 * (1000 + 2 * 2000), abs=64)
    net = torch.nn.Linear(10, 20)
    x = torch.rand(3, 10, requires_grad=True)
    # the input of the product; what GELU is given; no parameter
    assert bytes_kept(net, lambda: F.gelu(net(x))) == 4 * (3 * 10 + 3 * 20)


def test_shares_name_attention_products_and_the_rest() -> None:
    a, q = torch.rand(400, 400), torch.rand(1, 2, 300, 64)
    by_kind, top = shares(lambda: a @ a, CPU)
    assert by_kind["matrix products"] == max(by_kind.values())
    assert sum(by_kind.values()) == pytest.approx(1)
    assert top[0][0] == "aten::mm"
    by_kind, _ = shares(lambda: F.scaled_dot_product_attention(q, q, q), CPU)
    assert by_kind["attention"] == max(by_kind.values())


@pytest.mark.slow
def test_the_model_as_a_table(tmp_path: Path) -> None:
    file = tmp_path / "out" / "model.json"
    words = ["bench", "model", *SMALL, "--batch", "1,2", "--mode", "train,infer", "--dtype", "bf16"]
    result = CliRunner().invoke(app, [*words, "--rounds", "2", "--device", "cpu", "--json", str(file)])
    assert result.exit_code == 0, result.output
    assert "vivit_fe Ti, 4 frames of 32, tubelet [2, 16, 16]; CPU, " in result.stdout
    assert result.stdout.count("| train | bf16 | ") == result.stdout.count("| infer | bf16 | ") == 2
    assert "Bottleneck of infer in bf16 with 2 clips: " in result.stdout
    rows = json.loads(file.read_text())["rows"]
    assert len(rows) == 4
    for row in rows:
        assert set(row["speeds"]) == {"eager", "sdpa"}
        for speed in row["speeds"].values():
            assert speed["step_s"] > 0
            assert speed["mfu"] > 0
    peak = {(row["cell"]["mode"], row["cell"]["batch"]): row["speeds"]["sdpa"]["peak_bytes"] for row in rows}
    assert peak["train", 2] > peak["train", 1] > peak["infer", 1]


def test_attention_that_is_written_out_takes_its_memory() -> None:
    """Of 257 tokens the maps of two heads are 0.5 MB in each block; ours never writes them."""
    model = node("vivit_st", frames=2, image_size=256, dim=32, depth=3, heads=2)
    row = measure_cell(Cell(model, "train", "float32", 1, "cpu", ("eager", "sdpa"), 1, classes=3))
    maps = 3 * 2 * 257**2 * 4
    assert row.speeds["eager"].peak_bytes - row.speeds["sdpa"].peak_bytes > maps
    assert sum(row.shares.values()) == pytest.approx(1)


@pytest.mark.slow
def test_a_cell_that_cannot_be_measured_costs_no_other() -> None:
    good = node("vivit_fe", frames=2, image_size=32, dim=8, depth=1, heads=1)
    # a clip of 4e15 bytes: no machine has them
    cells = [Cell(good, "infer", "float32", clips, "cpu", ("sdpa",), 1) for clips in (10**11, 1)]
    lacking, done = bench(cells)
    assert lacking.failure == "out of memory"
    assert not lacking.speeds
    assert set(done.speeds) == {"sdpa"}


@pytest.mark.slow
def test_growth_as_a_picture(tmp_path: Path) -> None:
    picture = tmp_path / "growth.png"
    words = [*SMALL, "--frames", "4,8", "--crops", "32,64", "--rounds", "1", "--device", "cpu"]
    command = [sys.executable, str(ROOT / "benchmarks/growth.py"), *words, "--picture", str(picture)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
    for model in ("vivit_st", "vivit_fe", "vivit_fsa", "vivit_fdp"):
        assert result.stdout.count(f"| {model} | frames | ") == result.stdout.count(f"| {model} | crop | ") == 2
    assert result.stdout.count("| x ") == 2 * 8  # operations and time, of each value but the first


def test_whole_training_steps(config: Callable[..., DictConfig]) -> None:
    result = bench_train(config("loss.label_smoothing=0.1", "mixup=0.3"), steps=3)
    assert result.micro_batch_size == 8
    assert result.clips_per_s > 0
    assert all(ms > 0 for ms in result.stage_ms.values())
    assert 0 < result.mfu < 1
    # what a step takes by stage is about what it takes as they come: a shared machine is noisy
    assert 0.2 < sum(result.stage_ms.values()) / (8000 / result.clips_per_s) < 5
    said = table(result, ["data=csv"])
    assert f"| {FORWARD} | " in said
    assert "Slowest stage: " in said
    assert "\nvivit bench loader data=csv --target " in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model", "--batch", "0"], "--batch 0: expected comma-separated numbers, such as 1,2,4"),
        (["model", "--mode", "test"], "--mode test: 'test' is not one of train, infer"),
        (["model", "--dtype", "int8"], "--dtype int8: 'int8' is not one of float32, bf16, fp16"),
        (["model", "--device", "tpu"], "--device tpu: must be cpu, cuda or auto"),
        (["model", "data.crop=33"], "height 33 is not a multiple"),
        (["model", "model=vivit_fdp", "model.heads=3"], "vivit_fdp uses half of its heads for time"),
        (["train", "data.crop=33"], "height 33 is not a multiple"),
    ],
)
def test_what_cannot_be_measured_is_said(words: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["bench", *words])
    assert result.exit_code != 0
    assert message in str(result.exception)


@pytest.mark.slow
def test_a_compiled_run_is_the_same_run(videos: Path, config: Callable[..., DictConfig], tmp_path: Path) -> None:
    """By inductor: graphs of training and validation and no more; the same checkpoints as uncompiled."""
    from vivit_train.run import evaluate, train
    from vivit_train.training.checkpoint import load_checkpoint

    losses = []
    for compiled in ("false", "true"):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        cfg = config(
            "data=folder", f"data.root={videos}", *TINY, f"model.compile={compiled}", "ema_decay=0.9",
            "micro_batch_size=4", "trainer.max_epochs=2", f"run_dir={tmp_path / compiled}",
        )  # fmt: skip
        Path(cfg.run_dir).mkdir()
        score = train(cfg)
        stats = torch._dynamo.utils.counters["stats"]
        assert stats.get("unique_graphs", 0) == (2 if compiled == "true" else 0)
        best = Path(cfg.run_dir) / "checkpoints/best.ckpt"
        scores = evaluate(config(f"ckpt_path={best}", "eval.split=val", name="eval"))
        (top1,) = (value for name, value in scores.items() if "top1" in name)
        assert top1 == pytest.approx(score)
        _, weights = load_checkpoint(best)
        losses.append(weights)
    assert losses[0].keys() == losses[1].keys()
    for name, weight in losses[0].items():
        torch.testing.assert_close(losses[1][name], weight, atol=1e-4, rtol=1e-3)
