"""An exported model computes the checkpoint's logits without this package, and says what it is."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TINY
from omegaconf import DictConfig
from typer.testing import CliRunner

import vivit_train
from vivit_train.run import train
from vivit_train.tools.cli import app

Config = Callable[..., DictConfig]
MODELS = ("vivit_st", "vivit_fe", "vivit_fsa", "vivit_fdp")


@pytest.fixture(scope="module")
def runs(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A tiny run of a model, trained when it is first asked for."""
    folder = tmp_path_factory.mktemp("runs")

    def run(model: str) -> Path:
        if not (folder / model).exists():
            words = [*TINY, "data=folder", f"data.root={videos}", f"model={model}", "callbacks.contact_sheet=null"]
            train(vivit_train.compose(*words, "optimizer.lr=0.01", run_dir=folder / model))
        return folder / model

    return run


def export(*words: object) -> str:
    done = CliRunner().invoke(app, ["export", *map(str, words)])
    assert done.exit_code == 0, done.output
    return done.output


def run_example(folder: Path, video: Path, *, ours: bool = False) -> list[str]:
    """Runs example.py, without this package unless `ours`; returns its lines."""
    hide = "" if ours else "sys.modules['vivit_train'] = None; "
    code = f"import runpy, sys; {hide}sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", code, str(folder / "example.py"), str(video)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def clips_of(run: Path, videos: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The clips of three test videos, and their logits."""
    model = vivit_train.load(run, device="cpu")
    clips = torch.cat([model.preprocess(file) for file in sorted(videos.glob("test/*/*.mp4"))[:3]])
    return clips, model.logits(clips)


@pytest.mark.slow
def test_torch_runs_it_without_this_package(runs: Callable[[str], Path], videos: Path, tmp_path: Path) -> None:
    run = runs("vivit_fe")
    out = export(run, "--format", "torch-export", "--out", tmp_path / "out")
    assert "written: " in out
    clips, logits = clips_of(run, videos)
    loaded = torch.export.load(tmp_path / "out/model.pt2").module()
    torch.testing.assert_close(loaded(clips), logits, atol=1e-5, rtol=1e-5)
    settings = json.loads((tmp_path / "out/preprocessing.json").read_text())
    assert (settings["frames"], settings["stride"], settings["crop"], settings["short_side"]) == (4, 2, 32, 36)
    assert settings["classes"][""] == sorted(path.name for path in (videos / "train").iterdir())
    card = (tmp_path / "out/README.md").read_text()
    for text in ("ViViT (vivit_fe), 8 classes", "test/top1@1x1", "16 videos of the test split", "logits differ"):
        assert text in card
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"model.pt2", "preprocessing.json", "README.md", "example.py"}
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


@pytest.mark.slow
@pytest.mark.parametrize("format", ["torch-export", "onnx", "safetensors", "huggingface"])
def test_its_example_predicts_as_we_do(
    format: str, runs: Callable[[str], Path], videos: Path, tmp_path: Path
) -> None:
    if format == "onnx":
        pytest.importorskip("onnxruntime")
    if format == "huggingface":
        pytest.importorskip("transformers")
    run, video = runs("vivit_st"), next(videos.glob("test/*/*.mp4"))
    export(run, "--format", format, "--out", tmp_path / "out")
    lines = run_example(tmp_path / "out", video, ours=format == "safetensors")
    best = vivit_train.load(run, device="cpu").predict(video).labels
    name, probability = lines[0].split()
    assert len(lines) == 5
    assert abs(float(probability) - best[0].probability) < 0.02  # the resized pixels may differ by one
    assert name in {label.name for label in best[:2]}


@pytest.mark.slow
@pytest.mark.parametrize("words", [[], ["--half"], ["--int8"]], ids=["float32", "float16", "int8"])
@pytest.mark.parametrize("model", MODELS)
def test_onnx(model: str, words: list[str], runs: Callable[[str], Path], videos: Path, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    export(runs(model), "--format", "onnx", "--out", tmp_path / "out", *words)
    clips, logits = clips_of(runs(model), videos)
    session = runtime.InferenceSession(tmp_path / "out/model.onnx")
    for batch in (clips, clips[:1]):
        (found,) = session.run(None, {"clips": batch.numpy()})
        limit = {"--half": 0.02, "--int8": 0.3}.get("".join(words), 1e-4)
        np.testing.assert_allclose(found, logits[: len(batch)], atol=limit * float(logits.abs().max()))


@pytest.mark.parametrize("model", ["vivit_fe", *(pytest.param(m, marks=pytest.mark.slow) for m in MODELS)])
@pytest.mark.parametrize("format", ["safetensors", "scenic"])
def test_formats_of_tensors(format: str, model: str, runs: Callable[[str], Path], tmp_path: Path) -> None:
    """The command itself compares the logits of what it wrote."""
    export(runs(model), "--format", format, "--out", tmp_path / "out")
    assert (tmp_path / "out" / {"safetensors": "vivit_train.json", "scenic": "checkpoint_0"}[format]).is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "huggingface"], "Hugging Face's ViViT cannot express the model vivit_fe (only vivit_st)"),
        (
            ["--format", "scenic", "--half"],
            "--format scenic has no --half, unlike onnx, torch-export, safetensors",
        ),
        (["--format", "onnx", "--half", "--int8"], "--half and --int8 exclude each other"),
        (["--format", "torch-export", "--out", "full"], "full exists: choose another folder for --out"),
    ],
)
def test_what_cannot_be_is_one_message(
    words: list[str],
    message: str,
    runs: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").touch()
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["export", str(runs("vivit_fe")), "--out", "new", *words])
    assert done.exit_code == 2
    assert message in done.output + capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
