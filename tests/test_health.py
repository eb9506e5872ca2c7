"""Steps that are not finite, memory that does not suffice, and what a run says of its cost."""

import csv
import re
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import Happened
from omegaconf import DictConfig
from parity import cost
from torch import Tensor
from typer.testing import CliRunner

from vivit_train.data.synthetic import make_demo
from vivit_train.models.vivit import MODELS, ViViT
from vivit_train.run import train
from vivit_train.tools.cli import app
from vivit_train.training import nonfinite
from vivit_train.training.checkpoint import load_checkpoint
from vivit_train.training.module import VideoClassifier
from vivit_train.training.profiling import forward_flops, matmul_peak, step_dtype
from vivit_train.utils.errors import OutOfMemoryError, UserError

Config = Callable[..., DictConfig]


def settings(videos: Path, *others: str) -> list[str]:
    """Three steps an epoch of two micro-batches each, with all that is random."""
    common = ["mixup=0.3", "model.drop_path=0.1", "micro_batch_size=4", "trainer.log_every_n_steps=1"]
    common += ["callbacks.contact_sheet=null", "callbacks.report=null"]  # pictures take longer than the training
    return ["data=folder", f"data.root={videos}", *common, *others]


def break_losses(monkeypatch: pytest.MonkeyPatch, *bad: int) -> None:
    """The losses of these micro-batches, counted from 0, are nan."""
    seen, loss = iter(range(10_000)), VideoClassifier.loss

    def broken(self: VideoClassifier, logits_BK: Tensor, target: Tensor) -> Tensor:
        value = loss(self, logits_BK, target)
        return value * float("nan") if self.training and next(seen) in bad else value

    monkeypatch.setattr(VideoClassifier, "loss", broken)


def state(checkpoint: Path) -> tuple[dict[str, Tensor], dict[int, dict[str, Tensor]]]:
    """Weights, and the optimizer's moments."""
    content = torch.load(checkpoint, weights_only=True)
    return content["state_dict"], content["optimizer_states"][0]["state"]


@pytest.mark.slow
@pytest.mark.fault("Numbers")
def test_a_step_from_stored_features_can_be_replayed(
    videos: Path, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, happened: Happened
) -> None:
    words = ["data=folder", f"data.root={videos}", "train=head", "cache=true", "cache_views=1"]
    monkeypatch.chdir(tmp_path)  # The features are stored there.
    break_losses(monkeypatch, 1)
    with pytest.raises(UserError, match="the loss of step 2 is not finite"):
        train(config(*words))
    monkeypatch.undo()
    file = tmp_path / "run/nonfinite/step_2_rank_0.pt"
    said = CliRunner().invoke(app, ["replay", str(file)], catch_exceptions=False).output
    assert re.search(r"loss: \S+ here, nan in the run\n", said)
    assert "everything is finite in float32" in said
    assert "no contact sheet: the step was trained from stored features (cache=true)" in said
    assert not file.with_suffix(".png").exists()
    happened("A loss of nan with `cache=true`, and then `vivit replay`", said)


@pytest.mark.fault("Numbers")
def test_a_step_that_is_not_finite_stops_the_run_and_can_be_replayed(
    videos: Path, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, happened: Happened
) -> None:
    break_losses(monkeypatch, 9)  # the second micro-batch of the fifth step
    with pytest.raises(UserError) as raised:
        train(config(*settings(videos, "trainer.max_epochs=2", "callbacks.last.minutes=0")))
    monkeypatch.undo()
    stopped = str(raised.value)
    folder = tmp_path / "run/checkpoints"
    file = tmp_path / "run/nonfinite/step_5_rank_0.pt"
    assert "the loss of step 5 is not finite\n" in stopped
    assert f"vivit replay {file}" in stopped
    assert len(re.findall(r"micro-batch 2 of 2, loss nan: .*\.mp4, frames \d+ to \d+\n", stopped)) == 4
    assert "micro-batch 1" not in stopped
    assert "on_nonfinite=skip" in stopped
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 4
    expected, moments = state(folder / "last.ckpt")
    assert all(value.isfinite().all() for value in (*expected.values(), *moments[0].values()))

    saved = torch.load(file, weights_only=True)
    step = saved["replay"]
    assert (step["step"], step["epoch"], step["precision"]) == (5, 2, "32-true")
    assert [batch["video"].dtype for batch in step["micro_batches"]] == [torch.uint8] * 2
    for path in step["micro_batches"][1]["paths"]:
        assert f"{path}, frames" in stopped
    metadata, weights = load_checkpoint(file)
    assert metadata.config["data"]["root"] == str(videos)
    for name, value in weights.items():
        assert torch.equal(value, expected[f"net.{name}"]), name

    def replayed() -> str:
        torch.save(saved, file)
        result = CliRunner().invoke(app, ["replay", str(file)], catch_exceptions=False)
        assert file.with_suffix(".png").stat().st_size > 0
        file.with_suffix(".png").unlink()
        return result.output

    said = replayed()  # nothing is wrong with the weights
    assert "everything is finite in float32" in said
    happened("A loss of nan", stopped)
    same, other = re.findall(r"loss: (\S+) here, (\S+) in the run\n", said)  # mixed and dropped as they were
    assert float(same[0]) == float(same[1])
    assert other[1] == "nan"

    good = saved["state_dict"]["net.encoder.blocks.0.mlp.fc2.weight"]
    saved["state_dict"]["net.encoder.blocks.0.mlp.fc2.weight"] = good * 3e38 / good.abs().max()
    said = replayed()
    assert said.count("forward: encoder.blocks.0.mlp.fc2 outputs inf from a finite input") == 2
    assert "first at head.weight" in said or "first at head.bias" in said
    assert said.count("<- logits are not finite") == 8
    happened("A weight of 3e38, and then `vivit replay`", said)
    saved["state_dict"]["net.encoder.blocks.0.mlp.fc2.weight"] = good
    saved["state_dict"]["net.encoder.blocks.0.attention.qkv.bias"] += 1e30  # what attention cannot multiply
    assert "forward: encoder.blocks.0.attention.out outputs nan from an input" in replayed()

    def refused(path: Path, words: str) -> None:
        with pytest.raises(UserError, match=words):
            CliRunner().invoke(app, ["replay", str(path)], catch_exceptions=False)

    refused(tmp_path / "none.pt", "no such file")
    refused(tmp_path / "run/checkpoints/last.ckpt", "holds no step to replay")
    del saved["replay"]["micro_batches"][0]["seed"]
    torch.save(saved, file)
    refused(file, "does not hold a valid step: 'seed'")
    saved["vivit_train"]["config"]["model"]["_target_"] = "os.system"
    torch.save(saved, file)
    refused(file, "refusing to call 'os.system'")


@pytest.mark.fault("Numbers")
def test_a_step_that_is_left_out_changes_nothing(
    videos: Path,
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    happened: Happened,
) -> None:
    """The last step of a run, so that its end is that of the step before."""
    choices = settings(videos, "callbacks.last.minutes=0", "callbacks.health.on_nonfinite=skip")
    monkeypatch.setattr(nonfinite, "FILES", 0)
    train(config(*choices, "trainer.max_steps=2"))
    expected = state(tmp_path / "run/checkpoints/last.ckpt")
    break_losses(monkeypatch, 4)
    train(config(*choices, "overwrite=true"))
    torch.testing.assert_close(state(tmp_path / "run/checkpoints/last.ckpt"), expected, rtol=0, atol=0)
    said = capsys.readouterr().out
    assert "the loss of step 3 is not finite: skipping the step, the 1st so far" in said
    assert said.count("micro-batch 1 of 2, loss nan: ") == 4
    assert not list(tmp_path.glob("run/nonfinite/*"))
    rows = list(csv.DictReader((tmp_path / "run/metrics.csv").open()))
    assert [row["train/skipped_steps"] for row in rows if row["train/skipped_steps"]][-1] == "1.0"
    epoch_loss = next(float(row["train/loss_epoch"]) for row in rows if row["train/loss_epoch"])
    assert epoch_loss < 10  # the mean of the others
    happened("A loss of nan with `callbacks.health.on_nonfinite=skip`", "weights and moments stay, it is counted")


@pytest.mark.fault("Numbers")
def test_too_many_in_a_row_stop_a_run_that_skips(
    videos: Path, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, happened: Happened
) -> None:
    monkeypatch.setattr(nonfinite, "IN_A_ROW", 3)
    break_losses(monkeypatch, 0, 4, 6, 8)  # steps 1, 3, 4, 5
    with pytest.raises(UserError, match=r"the loss of step 5 is not finite, the 3rd in a row") as error:
        train(config(*settings(videos, "trainer.max_epochs=3", "callbacks.health.on_nonfinite=skip")))
    happened("Too many of them in a row (here 3, else 20)", str(error.value).splitlines()[0])


@pytest.mark.fault("Numbers")
def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path, happened: Happened) -> None:
    net = ViViT.from_size("vivit_st", "Ti", num_classes=2, frames=2, image_size=16, dim=12, depth=1)
    task = VideoClassifier(net, {"": ["a", "b"]}, [0.5] * 3, [0.5] * 3)
    trainer: Any = SimpleNamespace(global_step=7)
    watch = nonfinite.NonFiniteGuard("skip", tmp_path)
    watch.on_save_checkpoint(trainer, task, {})
    net.head.bias.data[1] = float("inf")
    with pytest.raises(UserError, match=r"after step 7 weights are not finite \(net\.head\.bias") as error:
        watch.on_save_checkpoint(trainer, task, {})
    happened("A weight is infinite when a checkpoint is due", error.value)


def lack_memory_above(clips: int, lack: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    forward = ViViT.forward

    def limited(self: ViViT, video_BCTHW: Tensor) -> Any:
        if self.training and len(video_BCTHW) > clips and video_BCTHW.device.type != "meta":
            lack()
        return forward(self, video_BCTHW)

    monkeypatch.setattr(ViViT, "forward", limited)


def out_of_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nAnd so on")


@pytest.mark.fault("Memory")
def test_lack_of_memory_names_the_micro_batch_to_set(
    videos: Path, config: Config, monkeypatch: pytest.MonkeyPatch, happened: Happened
) -> None:
    lack_memory_above(2, out_of_memory, monkeypatch)
    with pytest.raises(OutOfMemoryError) as raised:
        train(config(*settings(videos)))
    said = str(raised.value)
    assert "micro_batch_size=4 (after 0 steps: CUDA out of memory. Tried to allocate 2.00 " in said
    assert "micro_batch_size=2 needs half; global_batch_size=8 stays" in said
    happened("A micro-batch of 4 does not fit", said)
    lack_memory_above(0, lambda: torch.empty(10**15), monkeypatch)  # a CPU says it otherwise
    with pytest.raises(OutOfMemoryError, match=r"can't allocate memory(.|\n)*it cannot be halved"):
        train(
            config(
                *settings(videos, "mixup=0", "micro_batch_size=1", "auto_micro_batch_size=true", "overwrite=true")
            )
        )


@pytest.mark.fault("Memory")
def test_a_micro_batch_that_does_not_fit_is_halved_until_it_does(
    videos: Path,
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    happened: Happened,
) -> None:
    train(config(*settings(videos, "micro_batch_size=2", "trainer.max_steps=2")))
    expected = state(tmp_path / "run/checkpoints/last.ckpt")
    capsys.readouterr()
    lack_memory_above(2, out_of_memory, monkeypatch)
    train(
        config(
            *settings(
                videos, "overwrite=true", "micro_batch_size=8", "trainer.max_steps=2", "auto_micro_batch_size=true"
            )
        )
    )
    said = capsys.readouterr().out
    assert said.count("out of memory with") == 2
    assert "batch: 8 = 2 clips x 1 device x 4 accumulated" in said
    torch.testing.assert_close(state(tmp_path / "run/checkpoints/last.ckpt"), expected, rtol=0, atol=0)
    happened(
        "The same with `auto_micro_batch_size=true`",
        "it is halved until it fits; the weights are those of a run that was told so, bit by bit",
    )


@pytest.mark.parametrize("model", MODELS)
def test_operations_are_those_of_the_table_in_the_readme(model: str) -> None:
    net = ViViT.from_size(model, "S", num_classes=400, depth=2)
    assert forward_flops(net) / 2e9 == pytest.approx(cost(model, "S", {"depth": 2})[1])  # the computed ones


def test_the_plan_and_the_log_say_what_training_costs(
    videos: Path, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = "callbacks.report={_target_: vivit_train.training.callbacks.Report, curves: %s}" % (
        tmp_path / "curves.png"
    )
    train(config(*settings(videos), report))
    said = capsys.readouterr().out
    assert "0.001148 GFLOPs per clip (forward)" in said
    assert "1 epoch, 3 steps, 24 clips; precision 32-true, cpu" in said
    assert re.search(
        r"measured: [\d.e-]+ s per step, 0:\d\d for 3 steps .*MFU \d+%; peak memory \d\.\d GB\n", said
    )
    rows = [row for row in csv.DictReader((tmp_path / "run/metrics.csv").open()) if row["train/mfu_%"]]
    last = {name: float(value) for name, value in rows[-1].items() if value}
    peak = matmul_peak(torch.device("cpu"), torch.float32)
    net = ViViT.from_size("vivit_fe", "Ti", num_classes=8, frames=4, image_size=32, dim=32, depth=1, heads=2)
    assert last["train/mfu_%"] == pytest.approx(100 * 3 * forward_flops(net) * last["train/clips_per_s"] / peak)
    assert 0.1 < last["train/peak_memory_gb"] < 100
    weights, _ = state(tmp_path / "run/checkpoints/last.ckpt")
    norm = torch.cat([value.flatten() for name, value in weights.items() if name.startswith("net.")]).norm()
    assert last["train/weight_norm"] == pytest.approx(float(norm), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_no_linear_layer_is_far_above_the_peak(dtype: torch.dtype) -> None:
    """In float16 torch multiplies at least twenty times as slowly where the second matrix is not transposed.

    Other processes slow down either measurement, so they are repeated until both have had a quiet moment.
    """
    layer, x = torch.nn.Linear(512, 512, bias=False).to(dtype), torch.rand(512, 512).to(dtype)
    peak, fastest_s = 0.0, float("inf")
    with torch.inference_mode():
        for _ in range(20):
            matmul_peak.cache_clear()
            peak = max(peak, matmul_peak(torch.device("cpu"), dtype))
            start_s = time.perf_counter()
            layer(x)
            fastest_s = min(fastest_s, time.perf_counter() - start_s)
            if 2 * 512**3 / fastest_s < 3 * peak:
                return
    pytest.fail(f"the layer has {2 * 512**3 / fastest_s / 1e9:.0f} GFLOP/s, the peak is {peak / 1e9:.0f}")


def test_the_precision_s_name_says_what_products_are_computed_in() -> None:
    dtypes = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
    assert {name: step_dtype(name) for name in dtypes} == dtypes


def learns_two_clips(cfg: DictConfig, capsys: pytest.CaptureFixture[str]) -> bool:
    train(cfg)
    return bool(re.search(r"overfit: 2 clips learned: loss 0\.00\d\d after \d\d steps", capsys.readouterr().out))


def test_two_clips_are_learned_by_heart(videos: Path, config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["data.frames=8", "data.short_side=36", "data.crop=36"]
    folder = ["data=folder", f"data.root={videos}", "recipe=demo", "model=vivit_st"]
    assert learns_two_clips(config(*folder, *small, "debug=overfit", tiny=False), capsys)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "demo"
    make_demo(root)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_every_model_learns_two_clips_of_the_demo_by_heart(
    model: str, demo: Path, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    assert learns_two_clips(config(f"model={model}", "debug=overfit", f"data.root={demo}", tiny=False), capsys)
